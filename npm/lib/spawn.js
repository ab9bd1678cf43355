'use strict';

// Starts a worker's process, with the engine between its channel and Node's.
//
// Node itself starts the process and has a channel to it, so that `worker.process` is what it always was. Only the descriptors are others:
// the process gets the worker's end of a channel whose other end is the engine's, and Node's channel leads to the engine too.

const childProcess = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const { receiver, shorten } = require('./channel');
const { guard } = require('./guard');

const { ChildProcess } = childProcess;
/** What the engine knows of a process. */
const members = new WeakMap();
/** The same by number, as long as the channel is open. */
const helpers = new Map();
const OUT_OF_DESCRIPTORS = -os.constants.errno.EMFILE;
const OUT_OF_FILES = -os.constants.errno.ENFILE;

function reroute(child, engine, id, start, options) {
  const handle = child._handle;
  const spawn = handle.spawn;
  let whenClosed = () => {};
  // How Node passes the options differs between versions; it has put the complete ones here in all of them.
  handle.spawn = function(...args) {
    delete handle.spawn;
    const at = options.stdio.findIndex((entry) => entry.ipc);
    const entry = options.stdio[at];
    let ends;
    try {
      ends = engine.open(id);
    } catch {
      // There are no descriptors left; Node makes an `error` event of that.
      return OUT_OF_DESCRIPTORS;
    }
    const { worker, program } = ends;
    const { close } = entry.handle;
    entry.handle.close = function(...args) {
      delete entry.handle.close;
      close.apply(this, args);
      endHandles(child);
      helpers.get(id)?.close();
      helpers.delete(id);
      // After 'disconnect', which comes in this tick or the next.
      setImmediate(whenClosed);
    };
    options.stdio[at] = { type: 'fd', fd: worker, ipc: true };
    let error;
    try {
      error = spawn.apply(handle, args);
    } finally {
      options.stdio[at] = entry;
      // Node reads it after any other error too, so it must lead somewhere.
      if (error === OUT_OF_DESCRIPTORS || error === OUT_OF_FILES) fs.closeSync(program);
      else entry.handle.open(program);
      if (error !== 0) engine.abandon(id);
    }
    if (error === 0) {
      try {
        const member = engine.adopt(id, handle.pid, options.serialization === 'advanced', receiver(entry.handle), start);
        members.set(child, member);
        helpers.set(id, member);
        shorten(entry.handle, member);
        // When this thread is free: until then the engine reads what the worker says.
        setImmediate(help, id).unref();
      } catch (error) {
        // Nobody would look after it.
        handle.kill(os.constants.signals.SIGKILL);
        throw error;
      }
    }
    return error;
  };

  // The kernel tells of the end of a process as soon as it has happened, but the end of the channel comes by way of the engine.
  const onexit = handle.onexit;
  handle.onexit = function(...status) {
    const go = () => onexit.apply(this, status);
    if (child.channel && status[0] >= 0) whenClosed = go;
    else go();
  };
}

/** Reads this worker's messages here, if the engine would like that. */
function help(id) {
  helpers.get(id)?.help();
}

// The engine ends with the process, and so would what it has not written yet.
process.on('exit', () => {
  for (const member of helpers.values()) member.hurry();
});

/** The engine would like to have this worker's messages read here. */
exports.offered = help;

/**
 * The channel of a worker has ended. Node never says so, and keeps the socket open, while it waits for a socket to be confirmed, also when
 * the worker is dead: https://github.com/nodejs/node/blob/main/lib/internal/child_process.js, `disconnect`.
 */
function endHandles(child) {
  const queue = child._handleQueue;
  if (!queue) return;
  child._handleQueue = null;
  child._pendingMessage?.handle.close();
  child._pendingMessage = null;
  const error = Object.assign(new Error('Channel closed'), { code: 'ERR_IPC_CHANNEL_CLOSED' });
  process.nextTick(() => {
    for (const { callback } of queue) if (typeof callback === 'function') callback(error);
    child.emit('disconnect');
  });
}

/** What the engine knows of a worker's process, if it ever ran. */
exports.member = (child) => members.get(child);

/** As `child_process.fork`. With `start`, as the engine has ordered by this number. */
exports.fork = (engine, id, start, ...args) => {
  const { spawn } = ChildProcess.prototype;
  ChildProcess.prototype.spawn = function(options) {
    ChildProcess.prototype.spawn = spawn;
    reroute(this, engine, id, start, options);
    const status = spawn.call(this, options);
    const entry = options.stdio.find((entry) => entry.ipc);
    if (entry.handle) guard(this, entry.handle, id);
    return status;
  };
  try {
    return childProcess.fork(...args);
  } finally {
    ChildProcess.prototype.spawn = spawn;
  }
};
