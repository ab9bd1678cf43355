'use strict';

// `cluster.schedulingPolicy`: Node's numbers, the engine's names, or a function.

const { AssertionError } = require('node:assert');

/** Returns the engine's name of a policy. */
exports.nameOf = (policy) => {
  if (policy === 1) return 'shared';
  if (policy === 2) return 'round-robin';
  if (typeof policy === 'string') return policy;
  throw Object.assign(
    new AssertionError({ message: `Bad cluster.schedulingPolicy: ${String(policy)}`, operator: 'fail' }),
    { code: 'ERR_INTERNAL_ASSERTION' });
};

/** Returns the function that answers the engine's questions by calling the program's function. */
exports.asker = (choose, workerOf, answer) => ({ ticket, candidates, ...connection }) => {
  let chosen;
  try {
    const choice = choose(connection, candidates
      .map(({ id, ...known }) => ({ worker: workerOf(id), ...known }))
      // Without workers that were asked to disconnect a moment ago.
      .filter(({ worker }) => worker));
    // A worker, a candidate, or nothing.
    chosen = (choice?.worker ?? choice)?.id;
    if (choice !== undefined && choice !== null && !Number.isInteger(chosen)) {
      throw new TypeError(`cluster.schedulingPolicy must return a worker, or nothing; it returned ${String(choice)}`);
    }
  } catch (error) {
    // The connection is not lost. The error is thrown like any uncaught error of the program.
    process.nextTick(() => { throw error; });
  }
  answer(ticket, chosen);
};
