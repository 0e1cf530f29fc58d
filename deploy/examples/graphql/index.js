// Graphql is an example function: a GraphQL API over a small library. It is an ordinary Lambda
// function in Node.js (an ES module, with the npm package graphql in its zip) and knows nothing of
// Doze.
//
// Event:  {"query": "...", "variables": {...}, "operationName": "..."}
// Answer: what GraphQL answers, {"data": ...} or {"errors": [...]}

import { readFileSync } from 'node:fs';
import { buildSchema, execute, GraphQLError, parse, specifiedRules, validate } from 'graphql';
import { library } from './library.js';
import { depthLimit } from './depth.js';

const MAX_TOKENS = 1000;
const MAX_DEPTH = 8;

// Read once an instance: a warm call finds it here.
const schema = buildSchema(readFileSync(new URL('schema.graphql', import.meta.url), 'utf8'));
const rules = [...specifiedRules, depthLimit(MAX_DEPTH)];

export async function handler(event) {
  if (typeof event?.query !== 'string') {
    return { errors: [{ message: 'the event has no query' }] };
  }
  let document;
  try {
    document = parse(event.query, { maxTokens: MAX_TOKENS });
  } catch (error) {
    if (error instanceof GraphQLError) {
      return { errors: [error] };
    }
    throw error;
  }
  const errors = validate(schema, document, rules);
  if (errors.length > 0) {
    return { errors };
  }
  return execute({
    schema,
    document,
    rootValue: library,
    variableValues: event.variables,
    operationName: event.operationName,
  });
}
