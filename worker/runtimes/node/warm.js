'use strict';

// A function as any other, for bootstrap.js to load and call while it has none.

exports.warm = async (event) => ({ event });
