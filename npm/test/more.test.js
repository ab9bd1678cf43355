'use strict';

// What the drop-in can do and Node's `cluster` cannot.

const assert = require('node:assert');
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { test } = require('node:test');
const { run } = require('./both');

const scene = async (name, env) => {
  const { code, reports, errors } = await run('more.js', { args: [name], env });
  assert.strictEqual(code, 0, errors);
  return reports;
};

test('a function of the program chooses the worker of each connection', async () => {
  const reports = await scene('choice');
  const of = (kind) => reports.filter(([first]) => first === kind).map(([, ...rest]) => rest);
  const [first] = of('asked');
  assert.deepStrictEqual([first.slice(0, 3), first[3] > 0], [['127.0.0.1', 'IPv4', 'number'], true]);
  assert.deepStrictEqual(first[4].sort(), [1, 2, 3].map((id) => [id, true, 'number', 'number', 100]));
  assert.strictEqual(of('asked').length, 9);
  assert.deepStrictEqual(of('served'), [
    ...[1, 1, 2, 2, 3, 3].map((id) => [`127.0.0.${id}`, `worker ${id}`]),
    // No answer, a wrong one, and an error: it is somebody's turn.
    ...[7, 8, 9].map((id) => [`127.0.0.${id}`, 'string']),
  ]);
  assert.deepStrictEqual(of('caught'), [
    ['TypeError', 'cluster.schedulingPolicy must return a worker, or nothing; it returned nonsense'],
    ['Error', 'undecided'],
  ]);
  assert.deepStrictEqual(of('counters'), [[9]]);
});

test('under auto, few connections are handed over in exact turns', async () => {
  const reports = await scene('auto');
  const served = reports.slice(0, 6).map(([who]) => who);
  assert.strictEqual(new Set(served).size, 2);
  assert.ok(served.every((who, at) => at < 2 || who === served[at - 2]), String(served));
  assert.deepStrictEqual(reports[6], [[3, 3]]);
});

test('each worker has counters, also after its end', async () => {
  const [counters, last] = await scene('counters');
  for (const { open, ...known } of counters) {
    assert.deepStrictEqual(known, { handed: 3, taken: 3, returned: 0, inFlight: 0, violations: 0 });
    assert.ok(open <= 3);
  }
  assert.deepStrictEqual(last, [3]);
});

test('a worker that dies comes back, on the same port and with the same environment, however often', async () => {
  assert.deepStrictEqual(await scene('respawn'), [1, 2, 3, 4, 5].map((id) => [`worker ${id}x`]));
});

test('a worker that keeps dying keeps no other one from coming back, and the primary from nothing', async () => {
  assert.deepStrictEqual(await scene('one that keeps dying'), [['served', true]]);
});

test('a worker that keeps dying makes no other one wait', async () => {
  assert.deepStrictEqual(await scene('pauses of one slot'), [[true, true, true, true]]);
});

test('a reload starts a worker at once that was to come back later', async () => {
  assert.deepStrictEqual(await scene('reload during a pause'), [[1, { replaced: 1 }, [3, 4]], [2]]);
});

test('a worker that the program has killed does not come back', async () => {
  assert.deepStrictEqual(await scene('killed by the program'), [['came back'], [1, false]]);
});

test('a worker that the program kills without knowing that it has died does not come back', async () => {
  assert.deepStrictEqual(await scene('killed when it had died'), [[null, 'SIGKILL'], [0]]);
});

test('the program hears of the end of a worker before it hears of its successor', async () => {
  const reports = await scene('order of a respawn');
  assert.deepStrictEqual(reports.slice(0, 5), [['disconnect', 1], ['exit', 1], ['fork', 2], ['online', 2], ['listening', 2]]);
});

test('a primary whose workers never became ready gives up, and does not end with 0, unless the program says so', () => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'troop-'));
  try {
    const program = path.join(directory, 'program.js');
    const ends = (more) => {
      fs.writeFileSync(program, `const cluster = require(${JSON.stringify(path.join(__dirname, '..'))});
        if (cluster.isPrimary) {
          cluster.setupPrimary({ respawn: { delay: 1, restarts: 2 } });
          cluster.on('respawnLimit', () => { ${more} });
          cluster.fork();
        } else process.exit(7);`);
      return spawnSync(process.execPath, [program], { timeout: 20_000 }).status;
    };
    assert.deepStrictEqual([ends(''), ends('process.exitCode = 0'), ends('process.exitCode = 5'), ends('cluster.disconnect()')], [1, 0, 5, 0]);
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
});

test('a worker that was told to leave does not come back', async () => {
  assert.deepStrictEqual(await scene('no respawn'), []);
});

test('when all are told to leave, nobody comes, whatever was under way', async () => {
  const reports = await scene('disconnect during a reload');
  assert.deepStrictEqual(reports.sort(), [['ERR_TROOP_RELOAD'], ['all gone', 0]]);
  assert.deepStrictEqual(await scene('disconnect at an exit'), []);
});

test('a new worker that does not stay takes the reload back', async () => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'troop-'));
  try {
    const [[code, message, ids], served] = await scene('ready and gone', { VERSION: path.join(directory, 'version') });
    assert.deepStrictEqual([code, ids, served], ['ERR_TROOP_RELOAD', [1, 2], ['string']]);
    assert.match(message, /worker 3 ended right after it had been ready/);
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
});

test('a reload replaces all workers, or none, and no client notices', async () => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'troop-'));
  try {
    const reports = await scene('reload', { VERSION: path.join(directory, 'version') });
    const taken = (worker, why) => `The reload was taken back: worker ${worker} (process N) ${why}`;
    // In both of them, one or the other new worker can be the first to fail.
    const failures = reports.splice(2, 3).map(([bad, code, message, replaced, ids]) => [bad, code, message.replace(/worker \d+/, 'worker N'), replaced, ids]);
    assert.deepStrictEqual(failures, [
      ['throws', 'ERR_TROOP_RELOAD', taken('N', 'ended before it was ready: exit code 9'), 0, [5, 6]],
      ['exits', 'ERR_TROOP_RELOAD', taken('N', 'ended before it was ready: exit code 3'), 0, [5, 6]],
      ['silent', 'ERR_TROOP_RELOAD', taken('N', 'did not listen within 300 ms'), 0, [5, 6]],
    ]);
    assert.deepStrictEqual(reports, [
      [{ replaced: 2 }, [3, 4]],
      [{ replaced: 2 }, [5, 6]],
      [[['fulfilled', null], ['rejected', 'ERR_TROOP_RELOADING']]],
      [['ERR_INVALID_ARG_VALUE', 'reload: surge must be a number that is not negative (surge: at least 1), not 0']],
      [['ERR_INVALID_ARG_VALUE', 'reload has no option speed; it has ready, minUptime, timeout, killTimeout, surge, allowMoved']],
      [['ERR_INVALID_ARG_VALUE', 'reload: ready must be one of online, listening, message, not never']],
      [true, true],
    ]);
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
});
