// The library: the resolvers of the schema over a JSON file.

import { readFileSync } from 'node:fs';

const data = JSON.parse(readFileSync(new URL('data/library.json', import.meta.url), 'utf8'));

class Author {
  constructor(record) {
    Object.assign(this, record);
  }

  books() {
    return books.filter((book) => book.authorId === this.id);
  }
}

class Book {
  constructor({ author, ...record }) {
    Object.assign(this, record);
    this.authorId = author;
  }

  author() {
    return authors.get(this.authorId);
  }

  writtenAt() {
    return this.year - this.author().born;
  }
}

const authors = new Map(data.authors.map((record) => [record.id, new Author(record)]));
const books = data.books.map((record) => new Book(record)).sort((a, b) => a.year - b.year);
const booksById = new Map(books.map((book) => [book.id, book]));

export const library = {
  author: ({ id }) => authors.get(id),
  authors: () => [...authors.values()],
  book: ({ id }) => booksById.get(id),

  books({ genre, after, before, first }) {
    return books
      .filter((book) => (genre == null || book.genre === genre)
        && (after == null || book.year > after)
        && (before == null || book.year < before))
      .slice(0, Math.max(0, first));
  },

  statistics() {
    const counts = new Map();
    for (const { genre } of books) {
      counts.set(genre, (counts.get(genre) ?? 0) + 1);
    }
    return {
      books: books.length,
      authors: authors.size,
      medianYear: books[Math.floor((books.length - 1) / 2)].year,
      genres: [...counts]
        .map(([genre, n]) => ({ genre, books: n }))
        .sort((a, b) => b.books - a.books || a.genre.localeCompare(b.genre)),
    };
  },
};
