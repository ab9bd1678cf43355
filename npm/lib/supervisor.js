'use strict';

// Restarts of workers that die, and reloads. The engine's supervisor makes the decisions; this module starts the processes, which only Node
// can do.

const { once } = require('node:events');
const { constants: { signals } } = require('node:os');
const cluster = require('./target').get();

const RESPAWN = { delay: 100, maxDelay: 30_000, minUptime: 1_000, restarts: undefined, within: 60_000 };
const RELOAD = { ready: 'listening', minUptime: 0, timeout: 30_000, killTimeout: 30_000, surge: Infinity, allowMoved: false };
const READY = ['online', 'listening', 'message'];
/** Signals that programs send to end a worker. */
const ENDING = ['SIGTERM', 'SIGKILL', 'SIGINT', 'SIGQUIT', 'SIGHUP', 'SIGABRT'];
/** Interval in milliseconds at which the engine is asked whether it expects more workers. */
const ASK_INTERVAL = 500;

let engine = null;
let remove = () => {};

/** The last worker of each slot, and the environment that it was forked with. */
const slots = new Map();
/** Starts that wait for the `exit` event of the slot's last worker, by that worker's number. */
const waiting = new Map();
/** The number of the engine's order that the current fork carries out. */
let starting;
/** The reload in progress: its options, its new workers (`fresh`), and promises of the exits of its old ones (`leaving`). */
let reload = null;
/** Timer that keeps the process alive while the engine expects workers and none may run. */
let alive;
/** Whether the engine has given up because no worker was ever ready, and the program has forked none since. */
let gaveUp = false;

/** Makes the exit code 1 after giving up, unless the program has set one. */
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

/** Returns the complete options of `respawn`, or null without respawning. Throws on invalid ones. */
exports.options = ({ respawn }) => {
  if (!respawn) return null;
  if (respawn !== true && typeof respawn !== 'object') {
    throw fail('ERR_INVALID_ARG_TYPE', `respawn must be true, false or options, not ${String(respawn)}`, TypeError);
  }
  return complete(RESPAWN, respawn === true ? {} : respawn, 'respawn');
};

/** Sets the engine, and the function that removes a worker from `cluster.workers`. */
exports.use = (given, leaves) => { [engine, remove] = [given, leaves]; };

/** The number of the engine's order that the current fork carries out, if any. */
exports.starting = () => starting;

exports.forked = (worker, env, member) => {
  if (starting === undefined) gaveUp = false;
  // Without a member the process was not started, which an `error` event reports.
  if (member) slots.set(member.slot(), { worker, env });
};

/** Keeps the process alive as long as the engine expects workers, and until it is known that it does not. */
function look(endedId) {
  const { expectsWorkers, hasGivenUp } = engine.supervision(endedId);
  if (!expectsWorkers && !(hasGivenUp && !gaveUp)) alive = clearInterval(alive);
  else alive ??= setInterval(look, ASK_INTERVAL);
}

/** Forks a worker that the engine has ordered. No caller is there to catch errors, so they are warnings. */
function start(order) {
  const { number, slot, follows } = order;
  const { worker: last, env } = slots.get(slot) ?? {};
  // `exit` of a worker is emitted before `fork` of its successor.
  if (last && last.id === follows && last.state !== 'dead') return void waiting.set(follows, order);
  if (!engine.isStartWanted(number)) return;
  let worker;
  starting = number;
  try {
    worker = cluster.fork(env);
  } catch (error) {
    // For example out of memory.
    warn(`a worker could not be started: ${error.message}`);
    return engine.startFailed(number, error.message);
  } finally {
    starting = undefined;
  }
  worker.on('error', (error) => {
    warn(`worker ${worker.id}: ${error.message}`);
    if (worker.process.pid !== undefined) return;
    // The process was not started, so there will be no `exit`.
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

/** Carries out an order of the engine's supervisor. */
exports.obey = (order) => {
  acts[order.kind](order);
  look();
};

/** Called after the `exit` event of a worker. */
exports.exited = (worker) => {
  const order = waiting.get(worker.id);
  waiting.delete(worker.id);
  if (order) start(order);
  look(worker.id);
};

/** Ends the supervision of all workers. */
exports.stop = () => {
  gaveUp = false;
  engine.releaseAll();
};

/** Ends the supervision of one worker, so that it is not restarted. */
exports.release = (worker) => engine?.release(worker.id);

/** Whether this is one of the signals that end a process for good. */
exports.ends = (signal) => ENDING.some((name) => name === signal || signals[name] === signal);

async function ended(worker) {
  if (!worker.isDead() && worker.process.pid !== undefined) await once(worker, 'exit');
}

/** Describes the reason why a reload has failed. */
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

/** Replaces all workers by new ones that run the current program, and waits until the old ones have ended. */
exports.reload = async (given = {}) => {
  const options = complete(RELOAD, given, 'reload');
  if (reload) throw fail('ERR_TROOP_RELOADING', 'a reload is under way');
  // No worker was ever forked.
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
