'use strict';

// Real packages from npm, on workers and in primaries that have the drop-in.

const assert = require('node:assert');
const { test } = require('node:test');
const { run } = require('./both');

const PROMISES = {
  'express.js': [[['Express worker 1', 'Express worker 2']]],
  'fastify.mjs': [[[1, 2]]],
  'ws.js': [[['heard hello 0', 'heard hello 1', 'heard hello 2', 'heard hello 3']], ['gone']],
  'socketio.js': [[3, Array(6).fill('everybody')]],
};

for (const [name, reports] of Object.entries(PROMISES)) {
  test(`${name} works as with Node's own cluster`, async () => {
    for (const dropIn of [false, true]) {
      const result = await run(`../packages/${name}`, { dropIn });
      assert.deepStrictEqual(result.reports, reports, `${dropIn ? 'drop-in' : 'stock'}: ${result.errors}`);
      assert.strictEqual(result.code, 0);
    }
  });
}
