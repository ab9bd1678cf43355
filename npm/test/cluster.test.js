'use strict';

// The drop-in does what Node's own `cluster` does: programs report the same with both.

const assert = require('node:assert');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { test } = require('node:test');
const { both, run } = require('./both');

/** Events of a process and of its channel come in an order of their own; each kind must be the same. */
function sorted(reports, kinds) {
  const of = (kind) => reports.filter(([first]) => first === kind);
  return Object.fromEntries(kinds.map((kind) => [kind, of(kind)]));
}

/** Whether Node sees the end of a process or that of its channel first is chance; what it says about them is not. */
function ends({ code, errors, reports }) {
  const isEnd = (report) => report.includes('exit') || report.includes('disconnect');
  const last = reports.filter(isEnd).map(([kind, id, state, ...rest]) => JSON.stringify([kind, id, state?.flag ?? state, ...rest]));
  return { code, errors, last: last.sort(), others: reports.filter((report) => !isEnd(report)) };
}

test('a worker lives and ends as in Node, whoever ends it', async () => {
  const { stock, dropIn } = await both('life.js');
  assert.deepStrictEqual(ends(dropIn), ends(stock));
  assert.ok(stock.reports.length > 80, 'that was not all of it');
});

for (const SERIALIZATION of ['json', 'advanced']) test(`messages of all kinds and sizes arrive as in Node (${SERIALIZATION})`, async () => {
  const { stock, dropIn } = await both('messages.js', { env: { SERIALIZATION } });
  const kinds = ['message', 'callback', 'thrown', 'sent', 'exit', 'send', 'error'];
  assert.deepStrictEqual(sorted(dropIn.reports, kinds), sorted(stock.reports, kinds));
  assert.deepStrictEqual([dropIn.code, dropIn.errors], [stock.code, stock.errors]);
});

for (const SERIALIZATION of ['json', 'advanced']) test(`sockets and servers are passed on both ways (${SERIALIZATION})`, async () => {
  const { stock, dropIn } = await both('handles.js', { env: { SERIALIZATION } });
  const kinds = ['socket', 'socket sent', 'server', 'udp', 'message', 'back', 'exit'];
  assert.deepStrictEqual(sorted(dropIn.reports, kinds), sorted(stock.reports, kinds));
  assert.strictEqual(dropIn.reports.length, 7);
});

test('settings are kept, checked and used as in Node', async () => {
  const { stock, dropIn } = await both('settings.js');
  assert.deepStrictEqual(dropIn.reports, stock.reports);
});

for (const [policy, SERIALIZATION] of [['rr', 'json'], ['none', 'json'], ['rr', 'advanced'], ['none', 'advanced']]) {
  test(`servers of all kinds are shared, and fail, as in Node (${policy}, ${SERIALIZATION})`, async () => {
    const directories = ['stock', 'drop-in'].map(() => fs.mkdtempSync(path.join(os.tmpdir(), 'troop-')));
    try {
      const env = { NODE_CLUSTER_SCHED_POLICY: policy, SERIALIZATION };
      const [stock, dropIn] = await Promise.all(directories.map(
        (DIRECTORY, at) => run('serve.js', { dropIn: at === 1, env: { ...env, DIRECTORY } })));
      const facts = ({ reports }) => reports.filter(([kind]) => kind !== 'served by');
      assert.deepStrictEqual(facts(dropIn), facts(stock));
      const served = dropIn.reports.filter(([kind]) => kind === 'served by').map(([, by]) => by);
      if (policy === 'rr') assert.deepStrictEqual(served, [['1', '2'], ['1', '2'], ['1', '2'], ['1', '2']]);
      assert.strictEqual(dropIn.errors, '');
    } finally {
      for (const directory of directories) fs.rmSync(directory, { recursive: true });
    }
  });
}

test('a program that does not fork has no engine, makes no diagnostic report, and reads what it reads in Node', async () => {
  const { stock, dropIn } = await both('unforked.js');
  assert.deepStrictEqual(dropIn.reports, stock.reports);
  assert.deepStrictEqual([stock.code, stock.errors, dropIn.code, dropIn.errors], [0, 'engine: false', 0, 'engine: true']);
});

test('every way to get hold of the module leads to the drop-in', async () => {
  const { stock, dropIn } = await both('modules.mjs');
  assert.deepStrictEqual(dropIn.reports, stock.reports);
  assert.strictEqual(dropIn.code, 0);
});

test('a worker that abuses its channel harms nobody but itself', async () => {
  const { code, reports } = await run('abuse.js');
  assert.deepStrictEqual([code, reports], [0, [['served']]]);
});

test('what a killed worker had not taken is served by another', async () => {
  const { code, reports } = await run('killed.js');
  assert.deepStrictEqual([code, reports], [0, [['all answered']]]);
});

test('a program ends and is told when a worker dies with sockets under way to it', async () => {
  const { code, reports } = await run('unconfirmed.js');
  assert.strictEqual(code, 0);
  // The second socket is written when the first is confirmed, or the worker has ended by then. Who is told first is chance.
  const told = reports.filter(([kind]) => kind === 'called back').map(([, error]) => error);
  const [first, second, third] = [...told].sort((a, b) => Number(a !== null) - Number(b !== null));
  assert.deepStrictEqual([first, third], [null, 'ERR_IPC_CHANNEL_CLOSED']);
  assert.ok([null, 'ERR_IPC_CHANNEL_CLOSED'].includes(second), second);
  assert.deepStrictEqual(sorted(reports, ['called back', 'closed', 'disconnect', 'exit']), {
    'called back': told.map((error) => ['called back', error]),
    closed: Array(3).fill(['closed']),
    disconnect: [['disconnect']],
    exit: [['exit', 7]],
  });
});
