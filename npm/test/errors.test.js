'use strict';

// What the engine's errors say.

const assert = require('node:assert');
const { spawnSync } = require('node:child_process');
const { closeSync } = require('node:fs');
const { test } = require('node:test');
const { Engine } = require('../lib/native');

test('an error of the engine says why, with all causes', () => {
  const engine = new Engine('rr', () => {}, () => {}, () => {});
  const { worker, program } = engine.open(1);
  try {
    // It has ended, and nothing is left of it.
    const { pid } = spawnSync(process.execPath, ['--version']);
    assert.throws(() => engine.adopt(1, pid, false), {
      message: 'cannot watch a process that is to be a worker: No such process (os error 3)',
    });
    assert.throws(() => engine.adopt(2, pid, false), { message: 'no worker 2 was opened' });
  } finally {
    closeSync(program);
  }
  assert.ok(worker > 2);
});
