'use strict';

// `cluster.schedulingPolicy`: Node's numbers, the engine's names, or a function of the program's.

const { AssertionError } = require('node:assert');

/** What the engine calls it. */
exports.nameOf = (policy) => {
  if (policy === 1) return 'shared';
  if (policy === 2) return 'round-robin';
  if (typeof policy === 'string') return policy;
  throw Object.assign(
    new AssertionError({ message: `Bad cluster.schedulingPolicy: ${String(policy)}`, operator: 'fail' }),
    { code: 'ERR_INTERNAL_ASSERTION' });
};

/** Puts the engine's questions to the program's function, and gives its answer to the engine. */
exports.asker = (choose, workerOf, answer) => ({ ticket, candidates, ...connection }) => {
  let chosen;
  try {
    const choice = choose(connection, candidates
      .map(({ id, ...known }) => ({ worker: workerOf(id), ...known }))
      // One that was told to leave a moment ago.
      .filter(({ worker }) => worker));
    // A worker, what was passed in for it, or nothing.
    chosen = (choice?.worker ?? choice)?.id;
    if (choice !== undefined && choice !== null && !Number.isInteger(chosen)) {
      throw new TypeError(`cluster.schedulingPolicy must return a worker, or nothing; it returned ${String(choice)}`);
    }
  } catch (error) {
    // The connection is not lost; the program hears of it as of any error that it does not catch.
    process.nextTick(() => { throw error; });
  }
  answer(ticket, chosen);
};
