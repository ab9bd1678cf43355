'use strict';

// Connections that clients keep open outlive their workers.

const assert = require('node:assert');
const { test } = require('node:test');
const { run } = require('./both');

const after = async (way, settings) => {
  const { code, reports, errors } = await run('moving.js', { args: [way], env: { SETTINGS: JSON.stringify(settings) } });
  assert.strictEqual(code, 0, errors);
  const [[seen], last] = reports;
  assert.deepStrictEqual(last, ['gone']);
  assert.strictEqual(seen.sawOthers, true);
  return seen;
};

for (const serialization of ['json', 'advanced']) {
  for (const way of ['reload', 'disconnect']) {
    test(`clients that keep their connections open notice nothing of a ${way} (${serialization})`, async () => {
      const { opened, failed } = await after(way, { serialization });
      assert.deepStrictEqual({ opened, failed }, { opened: 10, failed: [] });
    });
  }
}

test('one setting leaves connections to Node, which closes them', async () => {
  const { opened } = await after('reload', { moveConnections: false });
  assert.ok(opened > 10, `${opened}`);
});

test('connections that nobody takes are served where they were', async () => {
  const { code, reports: [report], errors } = await run('refused.js', { dropIn: false });
  assert.strictEqual(code, 0, errors);
  assert.deepStrictEqual(report, { connections: 8, same: 24, after: 24 });
});
