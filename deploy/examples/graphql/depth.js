// A validation rule that bounds how deep a query may go: author.books.author.books... has no end of
// its own.

import { GraphQLError, Kind } from 'graphql';

export function depthLimit(max) {
  return (context) => {
    const known = new Map(); // each fragment is measured once, however often it is spread
    const depthOf = (node) => {
      let deepest = 0;
      for (const selection of node.selectionSet?.selections ?? []) {
        let depth = 0;
        if (selection.kind === Kind.FRAGMENT_SPREAD) {
          depth = depthOfFragment(selection.name.value);
        } else if (selection.kind === Kind.INLINE_FRAGMENT) {
          depth = depthOf(selection);
        } else {
          depth = 1 + depthOf(selection);
        }
        deepest = Math.max(deepest, depth);
      }
      return deepest;
    };
    const depthOfFragment = (name) => {
      if (!known.has(name)) {
        known.set(name, 0); // one that contains itself is another rule's complaint
        const fragment = context.getFragment(name);
        known.set(name, fragment ? depthOf(fragment) : 0);
      }
      return known.get(name);
    };
    return {
      OperationDefinition(operation) {
        const depth = depthOf(operation);
        if (depth > max) {
          context.reportError(new GraphQLError(`the query is ${depth} levels deep, the limit is ${max}`, { nodes: operation }));
        }
      },
    };
  };
}
