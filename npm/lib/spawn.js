'use strict';

// Starts a worker's process, with the engine between its channel and Node's.
//
// Node itself starts the process and has a channel to it, so `worker.process` is Node's own `ChildProcess`. Only the descriptors are replaced:
// the process gets one end of a channel whose other end belongs to the engine, and Node's channel leads to the engine too.

const childProcess = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const { receiver, shorten } = require('./channel');
const { guard } = require('./guard');

const { ChildProcess } = childProcess;
/** The engine's handle of each process. */
const members = new WeakMap();
/** The engine's handles of workers whose channels are open, by number. */
const helpers = new Map();
const OUT_OF_DESCRIPTORS = -os.constants.errno.EMFILE;
const OUT_OF_FILES = -os.constants.errno.ENFILE;

function reroute(child, engine, id, start, options) {
  const handle = child._handle;
  const spawn = handle.spawn;
  let whenClosed = () => {};
  // Versions of Node differ in how they pass options; in all of them `options` is complete by now.
  handle.spawn = function(...args) {
    delete handle.spawn;
    const at = options.stdio.findIndex((entry) => entry.ipc);
    const entry = options.stdio[at];
    let ends;
    try {
      ends = engine.open(id);
    } catch {
      // No descriptors are left; Node emits an `error` event for this code.
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
      // After 'disconnect', which is emitted in this tick or the next.
      setImmediate(whenClosed);
    };
    options.stdio[at] = { type: 'fd', fd: worker, ipc: true };
    let error;
    try {
      error = spawn.apply(handle, args);
    } finally {
      options.stdio[at] = entry;
      // After any other error Node still reads from it, so it must be a valid descriptor.
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
        // When this thread is free. Until then the engine reads the worker's messages.
        setImmediate(help, id).unref();
      } catch (error) {
        // The engine does not know the process, so it would not be supervised.
        handle.kill(os.constants.signals.SIGKILL);
        throw error;
      }
    }
    return error;
  };

  // The kernel reports the exit of a process immediately, but the end of its channel passes through the engine.
  const onexit = handle.onexit;
  handle.onexit = function(...status) {
    const go = () => onexit.apply(this, status);
    if (child.channel && status[0] >= 0) whenClosed = go;
    else go();
  };
}

/** Reads this worker's messages in this thread, if the engine permits it. */
function help(id) {
  helpers.get(id)?.help();
}

// The engine's thread ends with the process, so unwritten messages are written now.
process.on('exit', () => {
  for (const member of helpers.values()) member.hurry();
});

/** Called when the engine offers a worker's channel to this thread. */
exports.offered = help;

/**
 * Emits 'disconnect' for a channel that has ended while a socket was unconfirmed. Node does not, and keeps the socket open, even when the
 * worker is dead: https://github.com/nodejs/node/blob/main/lib/internal/child_process.js, `disconnect`.
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

/** The engine's handle of a worker's process; undefined if it was never started. */
exports.member = (child) => members.get(child);

/** `child_process.fork` with the engine in between. `start` is the number of the engine's order, if it carries one out. */
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
