'use strict';

// Listeners are open as long as workers have them, or are to have them.

const assert = require('node:assert');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { test } = require('node:test');
const { both, run } = require('./both');

async function within(act, name) {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'troop-'));
  try {
    return await act('places.js', { args: [name], env: { DIRECTORY: directory } });
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
}

const scene = async (name) => {
  const { code, reports, errors } = await within(run, name);
  assert.strictEqual(code, 0, errors);
  return reports;
};

test('a worker that comes back elsewhere closes the port that nobody has any more', async () => {
  assert.deepStrictEqual(await scene('respawn elsewhere'), [['served', true], ['waited', true], ['closed', true, true]]);
});

test('paths of workers that have died leave neither files nor descriptors', async () => {
  assert.deepStrictEqual(await scene('paths'), [['left', 1, true]]);
});

test('workers that remove their path before they listen all serve from the start, after a reload and after a crash', async () => {
  const workers = (...ids) => ids.map((id) => `worker ${id}`);
  assert.deepStrictEqual(await scene('unlinks'), [
    ['start', workers(1, 2, 3, 4)],
    ['reload', { replaced: 4 }, 4, workers(5, 6, 7, 8)],
    ['crash', workers(5, 6, 7, 9)],
  ]);
});

test('a port whose workers do not come back any more is closed while others serve', async () => {
  assert.deepStrictEqual(await scene('told to leave'), [['closed', true, true]]);
});

test('without respawn, a port is closed with its last worker, as in Node', async () => {
  const { stock, dropIn } = await within(both, 'plain');
  assert.deepStrictEqual(stock.reports, [['served', true], ['died', 'ECONNREFUSED', true], ['told', 'ECONNREFUSED']]);
  assert.deepStrictEqual(dropIn.reports, stock.reports);
});

test('a reload that loses the port of a single worker is taken back', async () => {
  const taken = 'The reload was taken back: no new worker listens on 127.0.0.1:PORT, where the old ones do (allowMoved permits that)';
  assert.deepStrictEqual(await scene('ports of their own'), [['ERR_TROOP_RELOAD', taken, true, true, true]]);
});

test('a reload that loses the port is taken back, unless that is allowed', async () => {
  const taken = 'The reload was taken back: no new worker listens on 127.0.0.1:PORT, where the old ones do (allowMoved permits that)';
  const failed = ['ERR_TROOP_RELOAD', taken, 0, true, true];
  const of = (workers) => [failed, failed, [{ replaced: workers }, true, true], [{ replaced: workers }, true, true]];
  assert.deepStrictEqual(await scene('reload'), [...of(1), ...of(2), ['reload: allowMoved must be true or false, not 1']]);
});

test('a reload of workers that bind their port past the cluster is taken back, unless they are to say themselves when they are ready', async () => {
  const taken = 'The reload was taken back: worker 2 (process N) did not listen within 1500 ms';
  assert.deepStrictEqual(await scene('past the cluster'), [['ERR_TROOP_RELOAD', taken, 'worker 1'], [{ replaced: 1 }, true]]);
});
