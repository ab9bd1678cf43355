'use strict';

// Workers that are started again when they die, and replaced while the cluster serves.

const cluster = require('./target').get();

const RESPAWN = { delay: 100, maxDelay: 30_000, minUptime: 1_000, restarts: 10, within: 60_000 };
const RELOAD = { ready: 'listening', minUptime: 0, timeout: 30_000, killTimeout: 30_000, surge: Infinity, allowMoved: false };
const READY = ['online', 'listening', 'message'];

/** The environment that a worker was forked with, and when. */
const known = new WeakMap();
/** Workers that a reload is about; it sees to them itself. */
const busy = new Set();
/** Forks to come. */
const timers = new Set();
/** When workers were started again. */
let restarts = [];
/** Deaths in a row, of workers that did not live long. */
let early = 0;
let reloading = false;
/** The program has told all workers to leave, and has forked none since. */
let stopped = false;
/** A fork of this module's own is under way. */
let own = false;
/** A worker was not started again because too many had been, and the program has forked none since. */
let gaveUp = false;

/** Whoever started this process must not take that for a success. An exit code of the program's own counts. */
function atExit(code) {
  if (gaveUp && code === 0 && process.exitCode === undefined) process.exitCode = 1;
}

/** The engine, which is told whether workers are to be forked in the place of others. */
let engine = null;

exports.use = (given) => { engine = given; };

/** Until they are forked, and have listened, listeners that no worker has stay open for them. */
function sayWhetherForksCome() {
  engine?.expectForks(timers.size > 0 || reloading);
}

/** The longest time that Node's timers know. */
const LONGEST = 2 ** 31 - 1;

/** A timer; none for ever. */
function after(ms, act, ...args) {
  return ms === Infinity ? undefined : setTimeout(act, Math.min(ms, LONGEST), ...args);
}

function fail(code, message, Type = Error) {
  return Object.assign(new Type(message), { code });
}

function complete(defaults, given, name) {
  for (const [key, value] of Object.entries(given)) {
    if (!Object.hasOwn(defaults, key)) {
      throw fail('ERR_INVALID_ARG_VALUE', `${name} has no option ${key}; it has ${Object.keys(defaults).join(', ')}`, TypeError);
    }
    const [fits, what] =
      key === 'ready' ? [READY.includes(value), `one of ${READY.join(', ')}`] :
        key === 'allowMoved' ? [typeof value === 'boolean', 'true or false'] :
          [typeof value === 'number' && value >= (key === 'surge' ? 1 : 0), 'a number that is not negative (surge: at least 1)'];
    if (!fits) {
      throw fail('ERR_INVALID_ARG_VALUE', `${name}: ${key} must be ${what}, not ${String(value)}`, TypeError);
    }
  }
  return { ...defaults, ...given };
}

function respawnOptions({ respawn }) {
  if (!respawn) return null;
  if (respawn !== true && typeof respawn !== 'object') {
    throw fail('ERR_INVALID_ARG_TYPE', `respawn must be true, false or options, not ${String(respawn)}`, TypeError);
  }
  return complete(RESPAWN, respawn === true ? {} : respawn, 'respawn');
}

/** Throws if settings make no sense. */
exports.check = (settings) => { respawnOptions(settings); };

exports.forked = (worker, env) => {
  if (!own) stopped = gaveUp = false;
  known.set(worker, { env, since: Date.now() });
};

function later(delay, act) {
  const timer = setTimeout(() => {
    timers.delete(timer);
    if (!stopped) act();
    sayWhetherForksCome();
  }, Math.min(delay, LONGEST));
  timers.add(timer);
}

/** Whether it comes back. */
function respawn(worker) {
  const options = respawnOptions(cluster.settings);
  if (!options || stopped) return false;
  const { env, since } = known.get(worker);
  return comeBack(worker, env, since, options);
}

function comeBack(worker, env, since, options) {
  const now = Date.now();
  early = now - since < options.minUptime ? early + 1 : 0;
  restarts = restarts.filter((at) => now - at < options.within);
  if (restarts.length >= options.restarts) {
    gaveUp = true;
    process.off('exit', atExit).once('exit', atExit);
    cluster.emit('respawnLimit', worker, { restarts: options.restarts, within: options.within });
    return false;
  }
  restarts.push(now);
  // With a little disorder, so that what dies together does not come back together.
  const delay = early === 0 ? 0 : Math.min(options.delay * 2 ** (early - 1), options.maxDelay) * (0.75 + Math.random() / 2);
  later(delay, () => {
    try {
      start(env);
    } catch (error) {
      // Of want of memory, say. The program is not there to catch it.
      process.emitWarning(`a worker could not be started: ${error.message}`, { type: 'TroopWarning' });
      comeBack(worker, env, Date.now(), options);
    }
  });
  return true;
}

/** A fork that nobody has asked for just now, so nobody is there to see it fail. */
function start(env) {
  let worker;
  own = true;
  try {
    worker = cluster.fork(env);
  } finally {
    own = false;
  }
  worker.on('error', (error) => {
    process.emitWarning(`worker ${worker.id}: ${error.message}`, { type: 'TroopWarning' });
    if (worker.process.pid !== undefined) return;
    // It was not even started, and will not end.
    delete cluster.workers[worker.id];
    exports.exited(worker);
  });
  return worker;
}

/** A worker has ended. Says whether another one comes in its place. */
exports.exited = (worker) => {
  const comesBack = busy.has(worker) || (!worker.exitedAfterDisconnect && respawn(worker));
  sayWhetherForksCome();
  return comesBack;
};

/** Whether a worker is to come back later. */
exports.isExpecting = () => timers.size > 0;

/** Nobody is to come back. */
exports.stop = () => {
  stopped = true;
  gaveUp = false;
  for (const timer of timers) clearTimeout(timer);
  timers.clear();
};

/** Resolves when a worker can serve; rejects if it ends before, or takes too long. */
function whenReady(worker, { ready, minUptime, timeout }) {
  return new Promise((resolve, reject) => {
    const { since } = known.get(worker);
    let settling;
    const done = (act, value) => {
      clearTimeout(settling);
      clearTimeout(deadline);
      worker.off('exit', onExit).off('error', onError).off(ready, onReady);
      act(value);
    };
    const refuse = (why) => done(reject, fail('ERR_TROOP_RELOAD', `worker ${worker.id} (process ${worker.process.pid ?? 'not started'}) ${why}`));
    const onExit = (code, signal) => refuse(`ended before it was ready: ${signal ?? `exit code ${code}`}`);
    const onError = (error) => refuse(`could not be started: ${error.message}`);
    const onReady = (message) => {
      if (ready === 'message' && message !== 'ready') return;
      worker.off(ready, onReady);
      settling = after(Math.max(0, since + minUptime - Date.now()), done, resolve);
    };
    const deadline = after(timeout, () => {
      const what = { listening: 'listen', online: 'start', message: "send 'ready'" }[ready];
      refuse(`did not ${what} within ${timeout} ms`);
    });
    worker.on('exit', onExit).on('error', onError).on(ready, onReady);
  });
}

/** Lets a worker finish, but not for ever. */
function retire(worker, killTimeout) {
  return new Promise((resolve) => {
    if (worker.isDead() || worker.process.pid === undefined) return void resolve();
    const deadline = after(killTimeout, () => worker.process.kill('SIGKILL'));
    worker.once('exit', () => {
      clearTimeout(deadline);
      resolve();
    });
    if (worker.isConnected()) worker.disconnect();
  });
}

/** Where several of the workers listen, or the only one, and which of them. */
function sharedBy(workers) {
  const shared = new Map();
  for (const worker of workers) {
    for (const address of engine.fixedAddresses(worker.id)) shared.set(address, [...shared.get(address) ?? [], worker]);
  }
  for (const [address, { length }] of shared) if (length === 1 && workers.length > 1) shared.delete(address);
  return shared;
}

/** Waits until new workers listen where those that are about to leave share an address; rejects if that takes too long. */
function whenTakenOver(shared, leaving, fresh, { timeout }) {
  const lost = () => {
    const taken = new Set(fresh.flatMap((worker) => engine.fixedAddresses(worker.id)));
    const held = [...shared].filter(([, holders]) => holders.some((worker) => leaving.includes(worker)));
    return held.map(([address]) => address).filter((address) => !taken.has(address));
  };
  return new Promise((resolve, reject) => {
    const done = (act, value) => {
      clearTimeout(deadline);
      for (const worker of fresh) worker.off('listening', look).off('exit', ended);
      act(value);
    };
    const look = () => { if (lost().length === 0) done(resolve); };
    // One that ends is dealt with by who waits for this.
    const ended = () => done(resolve);
    const since = Math.max(...fresh.map((worker) => known.get(worker).since));
    const deadline = after(Math.max(0, since + timeout - Date.now()), () => {
      const where = lost().join(', ');
      done(reject, fail('ERR_TROOP_RELOAD', `no new worker listens on ${where}, where the old ones do (allowMoved permits that)`));
    });
    for (const worker of fresh) worker.on('listening', look).on('exit', ended);
    look();
  });
}

async function replace(old, options, fresh) {
  const { env } = known.get(old);
  const worker = start(env);
  busy.add(worker);
  fresh.push(worker);
  await whenReady(worker, options);
}

/**
 * Replaces all workers by new ones, of the program as it is now. Old ones leave when their successors are ready; if one of those is not,
 * the new ones leave, those that are still there stay, and the promise is rejected.
 */
exports.reload = async function(given = {}) {
  const options = complete(RELOAD, given, 'reload');
  if (reloading) throw fail('ERR_TROOP_RELOADING', 'a reload is under way');
  reloading = true;
  const old = Object.values(cluster.workers).filter((worker) => worker.process.pid !== undefined && !worker.isDead());
  for (const worker of old) busy.add(worker);
  const { surge, killTimeout } = options;
  const left = [...old];
  const leaving = [];
  const shared = options.allowMoved || old.length === 0 ? new Map() : sharedBy(old);
  const all = [];
  let fresh = [];
  sayWhetherForksCome();
  try {
    while (left.length > 0) {
      fresh = [];
      if (stopped) throw fail('ERR_TROOP_RELOAD', 'the cluster was told to disconnect');
      const group = left.slice(0, surge);
      const results = await Promise.allSettled(group.map((worker) => replace(worker, options, fresh)));
      const failed = results.find(({ status }) => status === 'rejected');
      if (failed) throw failed.reason;
      all.push(...fresh);
      await whenTakenOver(shared, group, all, options);
      // While others were still starting.
      const gone = fresh.find((worker) => worker.isDead() || !worker.isConnected());
      if (gone) throw fail('ERR_TROOP_RELOAD', `worker ${gone.id} ended right after it had been ready`);
      for (const worker of fresh) busy.delete(worker);
      left.splice(0, group.length);
      const leave = Promise.all(group.map((worker) => retire(worker, killTimeout)));
      // With a limit, no more than that many are ever too many.
      if (surge < old.length) await leave;
      else leaving.push(leave);
    }
    await Promise.all(leaving);
    return { replaced: old.length };
  } catch (cause) {
    await Promise.all(fresh.map((worker) => retire(worker, killTimeout)));
    for (const worker of fresh) busy.delete(worker);
    throw Object.assign(fail('ERR_TROOP_RELOAD', `The reload was taken back: ${cause.message}`), {
      cause,
      replaced: old.length - left.length,
    });
  } finally {
    reloading = false;
    // Old ones that were to stay, have died meanwhile, and have no successor.
    for (const worker of left) {
      if (busy.delete(worker) && worker.isDead() && !worker.exitedAfterDisconnect) respawn(worker);
    }
    for (const worker of old) busy.delete(worker);
    sayWhetherForksCome();
  }
};
