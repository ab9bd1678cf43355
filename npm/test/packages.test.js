'use strict';

// Real packages from npm, on workers and in primaries that have the drop-in.

const assert = require('node:assert');
const { execFile } = require('node:child_process');
const path = require('node:path');
const { test } = require('node:test');
const { promisify } = require('node:util');
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

test('TypeScript knows what there is, and what there is not', async () => {
  const directory = path.join(__dirname, 'packages');
  const compiler = path.join(directory, 'node_modules', 'typescript', 'bin', 'tsc');
  await promisify(execFile)(process.execPath, [compiler, '-p', directory]).catch(({ stdout, message }) => assert.fail(stdout || message));
});
