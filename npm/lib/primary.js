'use strict';

// The `cluster` object of a primary. The engine handles listeners, connections and the transport of messages.

const Worker = require('./worker');

const cluster = require('./target').get();

/** Modules that are loaded at the first fork: every process and thread that is not a worker loads this file, and most never fork. */
const parts = {
  get native() { return require('./native'); },
  get inspector() { return require('./inspector'); },
  get preload() { return require('./preload'); },
  get spawn() { return require('./spawn'); },
  get scheduling() { return require('./scheduling'); },
  get supervisor() { return require('./supervisor'); },
};
const SCHED_NONE = 1;
const SCHED_RR = 2;

/** Workers whose channels are open. */
const connected = new Set();
/** Callbacks of `cluster.disconnect`, called when no workers are left. */
let waiting = [];

let lastId = 0;
let engine = null;

function noticed({ kind, text }) {
  process.emitWarning(text, { type: kind === 'error' ? 'TroopError' : 'TroopWarning' });
}

function start() {
  const { native: { Engine }, scheduling, spawn: { offered }, supervisor } = parts;
  // The policy is fixed from here on.
  const { schedulingPolicy: policy } = cluster;
  if (typeof policy === 'function') {
    const ask = scheduling.asker(policy, (id) => cluster.workers[id], (...answer) => engine.answer(...answer));
    engine = new Engine('', noticed, offered, supervisor.obey, ask);
  } else {
    engine = new Engine(scheduling.nameOf(policy), noticed, offered, supervisor.obey);
  }
  supervisor.use(engine, remove);
  process.on('internalMessage', (message) => {
    if (message.cmd !== 'NODE_DEBUG_ENABLED') return;
    const debug = (worker) => process._debugProcess(worker.process.pid);
    for (const worker of Object.values(cluster.workers)) {
      if (worker.state === 'online' || worker.state === 'listening') debug(worker);
      else worker.once('online', () => debug(worker));
    }
  });
}

function setupPrimary(options) {
  const settings = {
    args: process.argv.slice(2),
    exec: process.argv[1],
    execArgv: process.execArgv,
    silent: false,
    ...cluster.settings,
    ...options,
  };
  // Without this, all workers would write their profile to the same file.
  const { execArgv } = settings;
  if (execArgv.some((flag) => flag.startsWith('--prof')) && !execArgv.some((flag) => flag.startsWith('--logfile='))) {
    settings.execArgv = [...execArgv, '--logfile=v8-%p.log'];
  }
  const respawn = parts.supervisor.options(settings);
  cluster.settings = settings;
  if (!engine) start();
  for (const fd of settings.descriptors ?? []) engine.offer(fd);
  engine.respawn(respawn);
  process.nextTick(() => cluster.emit('setup', settings));
}

function startProcess(id, env) {
  const { settings } = cluster;
  const given = { ...process.env, ...env };
  return parts.spawn.fork(engine, id, parts.supervisor.starting(), settings.exec, settings.args, {
    cwd: settings.cwd,
    env: { ...given, ...parts.preload.variables(settings, given), NODE_UNIQUE_ID: `${id}` },
    serialization: settings.serialization,
    silent: settings.silent,
    windowsHide: settings.windowsHide,
    execArgv: [...settings.execArgv, ...parts.inspector.flags(settings)],
    stdio: settings.stdio,
    gid: settings.gid,
    uid: settings.uid,
  });
}

// Calls back when all workers are gone, as Node's documentation says. Node itself calls back when the first one is.
function callBack() {
  if (connected.size > 0 || Object.keys(cluster.workers).length > 0) return;
  const callbacks = waiting;
  waiting = [];
  for (const callback of callbacks) callback();
}

function remove(worker) {
  delete cluster.workers[worker.id];
  callBack();
}

/** Emits an event on the worker, then on the cluster. */
function tell(worker, event, ...args) {
  worker.emit(event, ...args);
  cluster.emit(event, worker, ...args);
}

const acts = {
  online(worker) {
    worker.state = 'online';
    tell(worker, 'online');
  },
  listening(worker, { addressType, address, port, fd }) {
    worker.state = 'listening';
    tell(worker, 'listening', { addressType, address, port, fd });
  },
  exitedAfterDisconnect(worker) {
    // The engine has confirmed it.
    worker.exitedAfterDisconnect = true;
  },
};

/** Whether a worker was asked to disconnect. The engine may have asked before this thread was notified. */
function wasToldToLeave(worker) {
  return !!worker.exitedAfterDisconnect || !!parts.spawn.member(worker.process)?.wasToldToLeave();
}

cluster.fork = function(env) {
  setupPrimary();
  const id = ++lastId;
  const worker = new Worker({ id, process: startProcess(id, env) });
  const member = parts.spawn.member(worker.process);
  parts.supervisor.forked(worker, env, member);

  worker.on('message', (message, handle) => cluster.emit('message', worker, message, handle));

  worker.process.once('exit', (code, signal) => {
    if (!worker.isConnected()) remove(worker);
    worker.exitedAfterDisconnect = wasToldToLeave(worker);
    worker.state = 'dead';
    tell(worker, 'exit', code, signal);
    parts.supervisor.exited(worker);
  });

  worker.process.once('disconnect', () => {
    connected.delete(worker);
    if (worker.isDead()) remove(worker);
    worker.exitedAfterDisconnect = wasToldToLeave(worker);
    worker.state = 'disconnected';
    tell(worker, 'disconnect');
    callBack();
  });

  worker.process.on('internalMessage', (message) => {
    if (message.cmd !== 'NODE_CLUSTER') return;
    if (typeof message.act === 'string' && Object.hasOwn(acts, message.act)) acts[message.act](worker, message);
  });

  process.nextTick(() => cluster.emit('fork', worker));
  cluster.workers[id] = worker;
  if (worker.isConnected()) connected.add(worker);
  return worker;
};

cluster.disconnect = function(callback) {
  // Without an engine no worker was ever forked.
  if (engine) parts.supervisor.stop();
  for (const worker of Object.values(cluster.workers)) {
    if (worker.isConnected()) worker.disconnect();
  }
  if (typeof callback === 'function') waiting.push(callback);
  process.nextTick(callBack);
};

Worker.prototype.disconnect = function() {
  this.exitedAfterDisconnect = true;
  if (!this.isDead()) parts.supervisor.release(this);
  // The engine removes the worker from its listeners, and passes the message on. A worker that has just died has no channel.
  if (this.process.connected) this.process.send({ cmd: 'NODE_CLUSTER', act: 'disconnect' }, () => {});
  remove(this);
  return this;
};

const { destroy } = Worker.prototype;

Worker.prototype.destroy = function(signal) {
  // Other signals need not end the process, and one that has ended already is not ended by the program.
  if (parts.supervisor.ends(signal || 'SIGTERM') && !this.isDead()) parts.supervisor.release(this);
  destroy.call(this, signal);
};

/** Adds a property that Node's object does not have, hidden from enumeration. */
function add(object, name, value) {
  Object.defineProperty(object, name, { value, writable: true, configurable: true, enumerable: false });
}

add(Worker.prototype, 'counters', function() {
  return parts.spawn.member(this.process)?.counters();
});
add(cluster, 'reload', (...options) => parts.supervisor.reload(...options));

cluster.isWorker = false;
cluster.isMaster = true;
cluster.isPrimary = true;
cluster.Worker = Worker;
cluster.workers = {};
cluster.settings = {};
cluster.SCHED_NONE = SCHED_NONE;
cluster.SCHED_RR = SCHED_RR;
cluster.schedulingPolicy = process.env.NODE_CLUSTER_SCHED_POLICY === 'none' ? SCHED_NONE : SCHED_RR;
cluster.setupPrimary = setupPrimary;
cluster.setupMaster = setupPrimary;

module.exports = cluster;
