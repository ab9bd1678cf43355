'use strict';

// Workers that are started again when they die, and replaced while the cluster serves. The engine's supervisor decides all of that; here is
// what it needs Node for: the processes.

const { once } = require('node:events');
const { constants: { signals } } = require('node:os');
const cluster = require('./target').get();

const RESPAWN = { delay: 100, maxDelay: 30_000, minUptime: 1_000, restarts: undefined, within: 60_000 };
const RELOAD = { ready: 'listening', minUptime: 0, timeout: 30_000, killTimeout: 30_000, surge: Infinity, allowMoved: false };
const READY = ['online', 'listening', 'message'];
/** Signals that programs send to end a worker. */
const ENDING = ['SIGTERM', 'SIGKILL', 'SIGINT', 'SIGQUIT', 'SIGHUP', 'SIGABRT'];
/** Milliseconds after which it is asked again whether workers are still to come. */
const ASK_INTERVAL = 500;

let engine = null;
let remove = () => {};

/** The last worker of each slot, and the environment that it was forked with. */
const slots = new Map();
/** Starts that wait until the program has been told of the end of a worker, by its number. */
const waiting = new Map();
/** The number of the start that the fork under way answers. */
let starting;
/** The reload that is under way: its options, what it has started, and who leaves for it. */
let reload = null;
/** Keeps the process alive while workers are to come and none may be there. */
let alive;
/** No more workers are started because none was ever ready, and the program has forked none since. */
let gaveUp = false;

/** Whoever started this process must not take that for a success. An exit code of the program's own counts. */
function atExit(code) {
  if (gaveUp && code === 0 && process.exitCode === undefined) process.exitCode = 1;
}

function fail(code, message, Type = Error) {
  return Object.assign(new Type(message), { code });
}

function warn(message) {
  process.emitWarning(message, { type: 'TroopWarning' });
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

/** Throws if the settings make no sense. */
exports.options = ({ respawn }) => {
  if (!respawn) return null;
  if (respawn !== true && typeof respawn !== 'object') {
    throw fail('ERR_INVALID_ARG_TYPE', `respawn must be true, false or options, not ${String(respawn)}`, TypeError);
  }
  return complete(RESPAWN, respawn === true ? {} : respawn, 'respawn');
};

/** `leaves` takes a worker out of the program's sight. */
exports.use = (given, leaves) => { [engine, remove] = [given, leaves]; };

/** The number of the start that the worker is for that is being forked. */
exports.starting = () => starting;

exports.forked = (worker, env, member) => {
  if (starting === undefined) gaveUp = false;
  // Its process may not run, of which an `error` event tells.
  if (member) slots.set(member.slot(), { worker, env });
};

/** The process goes on while workers are to come, and until it knows that none are. */
function look(endedId) {
  const { expectsWorkers, hasGivenUp } = engine.supervision(endedId);
  if (!expectsWorkers && !(hasGivenUp && !gaveUp)) alive = clearInterval(alive);
  else alive ??= setInterval(look, ASK_INTERVAL);
}

/** A fork that nobody has asked for just now, so nobody is there to see it fail. */
function start(order) {
  const { number, slot, follows } = order;
  const { worker: last, env } = slots.get(slot) ?? {};
  // The program hears of the end of a worker before it sees its successor.
  if (last && last.id === follows && last.state !== 'dead') return void waiting.set(follows, order);
  if (!engine.isStartWanted(number)) return;
  let worker;
  starting = number;
  try {
    worker = cluster.fork(env);
  } catch (error) {
    // Of want of memory, say. The program is not there to catch it.
    warn(`a worker could not be started: ${error.message}`);
    return engine.startFailed(number, error.message);
  } finally {
    starting = undefined;
  }
  worker.on('error', (error) => {
    warn(`worker ${worker.id}: ${error.message}`);
    if (worker.process.pid !== undefined) return;
    // It was not even started, and will not end.
    delete cluster.workers[worker.id];
    engine.startFailed(number, error.message);
  });
  reload?.fresh.set(worker.id, worker);
  if (reload?.options.ready === 'message') {
    worker.on('message', (message) => { if (message === 'ready') engine.reportReady(worker.id); });
  }
}

function giveUp({ worker: id, restarts }) {
  gaveUp = engine.supervision().hasGivenUp;
  process.off('exit', atExit).once('exit', atExit);
  const workers = [...slots.values()].map(({ worker }) => worker);
  const worker = workers.find((worker) => worker.id === id) ?? workers.at(-1);
  const { within } = exports.options(cluster.settings) ?? RESPAWN;
  cluster.emit('respawnLimit', worker, { restarts, within });
}

const acts = {
  start,
  draining({ worker: id }) {
    const worker = cluster.workers[id];
    if (!worker) return;
    worker.exitedAfterDisconnect = true;
    reload?.leaving.push(ended(worker));
    remove(worker);
  },
  'gave-up': giveUp,
  reloaded: (result) => reload.done(result),
};

/** Does what the engine's supervisor wants. */
exports.obey = (order) => {
  acts[order.kind](order);
  look();
};

/** A worker has ended, and the program knows. */
exports.exited = (worker) => {
  const order = waiting.get(worker.id);
  waiting.delete(worker.id);
  if (order) start(order);
  look(worker.id);
};

/** Nobody is to come back. */
exports.stop = () => {
  gaveUp = false;
  engine.releaseAll();
};

/** A worker is not to come back. */
exports.release = (worker) => engine?.release(worker.id);

/** Whether who sends this signal wants the process to end. */
exports.ends = (signal) => ENDING.some((name) => name === signal || signals[name] === signal);

async function ended(worker) {
  if (!worker.isDead() && worker.process.pid !== undefined) await once(worker, 'exit');
}

/** Why a reload has failed, for people. */
async function reason({ kind, worker: id, wasReady, text }, { options: { ready, timeout }, fresh }) {
  const worker = fresh.get(id);
  const who = worker ? `worker ${id} (process ${worker.process.pid})` : 'a worker';
  switch (kind) {
    case 'ended': {
      if (worker) await ended(worker);
      const { exitCode, signalCode } = worker?.process ?? {};
      const how = signalCode ?? `exit code ${exitCode}`;
      return wasReady ? `worker ${id} ended right after it had been ready: ${how}` : `${who} ended before it was ready: ${how}`;
    }
    case 'not-started': return `${who} could not be started: ${text}`;
    case 'not-ready': return `${who} did not ${{ listening: 'listen', online: 'start', message: "send 'ready'" }[ready]} within ${timeout} ms`;
    case 'not-listening': return `no new worker listens on ${text}, where the old ones do (allowMoved permits that)`;
    case 'told-to-leave': return 'the cluster was told to disconnect';
    default: return text;
  }
}

/** Replaces all workers by new ones, of the program as it is now, and waits until the old ones have ended. */
exports.reload = async (given = {}) => {
  const options = complete(RELOAD, given, 'reload');
  if (reload) throw fail('ERR_TROOP_RELOADING', 'a reload is under way');
  // Nobody was ever forked.
  if (!engine) return { replaced: 0 };
  const current = { options, fresh: new Map(), leaving: [] };
  const result = new Promise((resolve) => { current.done = resolve; });
  reload = current;
  try {
    engine.reload({ ...options, allOrNone: options.surge >= Object.keys(cluster.workers).length });
    const { replaced, failure } = await result;
    await Promise.all(current.leaving);
    if (!failure) return { replaced };
    const cause = fail('ERR_TROOP_RELOAD', await reason(failure, current));
    throw Object.assign(fail('ERR_TROOP_RELOAD', `The reload was taken back: ${cause.message}`), { cause, replaced });
  } finally {
    reload = null;
  }
};
