'use strict';

// `cluster.Worker` in the primary.

const EventEmitter = require('node:events');

function Worker(options) {
  if (!(this instanceof Worker)) return new Worker(options);
  EventEmitter.call(this);
  const { state, id, process } = (typeof options === 'object' && options) || {};
  this.exitedAfterDisconnect = undefined;
  this.state = state || 'none';
  this.id = id | 0;
  if (process) {
    this.process = process;
    process.on('error', (...args) => this.emit('error', ...args));
    process.on('message', (message, handle) => this.emit('message', message, handle));
  }
}

Object.setPrototypeOf(Worker.prototype, EventEmitter.prototype);
Object.setPrototypeOf(Worker, EventEmitter);

Worker.prototype.send = function(...args) {
  return this.process.send(...args);
};

Worker.prototype.isConnected = function() {
  return this.process.connected;
};

Worker.prototype.isDead = function() {
  const { exitCode, signalCode } = this.process;
  return (exitCode ?? null) !== null || (signalCode ?? null) !== null;
};

Worker.prototype.destroy = function(signal) {
  this.process.kill(signal || 'SIGTERM');
};

// Calls the current value of `destroy`, which programs may replace, as Node does.
Worker.prototype.kill = function(...args) {
  this.destroy(...args);
};

module.exports = Worker;
