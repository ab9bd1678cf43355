'use strict';

// Protects the primary's process from what a worker writes to its channel. Node believes a worker: a frame that is no value, an acknowledgement
// that nobody waits for, or a handle of a strange type throws inside Node, where no program can catch it. The engine refuses most of that before
// Node reads it; the rest is refused here, and the worker is killed.

const { constants: { signals } } = require('node:os');

const STREAMS = ['TCP', 'Pipe'];
/** The types of handles that Node knows, and the objects that they come as. */
const HANDLES = new Map([
  ['net.Native', STREAMS],
  ['net.Server', STREAMS],
  ['net.Socket', STREAMS],
  ['dgram.Native', ['UDP']],
  ['dgram.Socket', ['UDP']],
]);
/** Node sends a handle that did not arrive again, wraps it once more each time, and cannot read that itself. */
const MAX_WRAPPINGS = 4;

/** As Node's channel decides which event a message is. */
function isInternal(message) {
  return message !== null && typeof message === 'object' && typeof message.cmd === 'string' &&
    message.cmd.length > 'NODE_'.length && message.cmd.startsWith('NODE_');
}

/** The message that a handle came with, without the wrappings of earlier attempts. */
function unwrap(message) {
  for (let n = 1; n < MAX_WRAPPINGS && isInternal(message.msg) && message.msg.cmd === 'NODE_HANDLE'; n++) message = message.msg;
  return message;
}

/** What is wrong with a message that announces a handle. */
function fault({ type, key, dgramType, msg }, handle) {
  if (typeof type !== 'string' || !HANDLES.get(type)?.includes(handle.constructor.name)) return `a handle that is no ${String(type)}`;
  // Node looks it up in an ordinary object.
  if (key !== undefined && (typeof key !== 'string' || key in {})) return 'a handle of a server that cannot be';
  if (type === 'dgram.Socket' && dgramType !== 'udp4' && dgramType !== 'udp6') return 'a datagram socket of no family';
  if (isInternal(msg)) return 'a handle for Node itself';
}

/** An error of a handle that a program has not asked for, and may not know of, does not end the process. */
function tame(handle, id) {
  handle.on('error', ({ message }) => {
    if (handle.listenerCount('error') > 1) return;
    process.emitWarning(`a socket that worker ${id} sent has failed: ${message}`, { type: 'TroopWarning' });
  });
}

/** Guards the end of a worker's channel that Node has just set up. */
exports.guard = (child, channel, id) => {
  const node = child.listeners('internalMessage')[0];
  // A process that could not be started has none.
  if (!child.channel || !node) return;
  let refused = false;
  const refuse = (what) => {
    if (refused) return;
    refused = true;
    process.emitWarning(`worker ${id} was killed because it sent ${what}`, { type: 'TroopWarning' });
    child._handle?.kill(signals.SIGKILL);
  };

  const { onread } = channel;
  channel.onread = function(chunk) {
    if (!chunk) {
      // The end. Node emits an error if the program has called `disconnect` and a handle is still unconfirmed.
      if (child.channel) child.connected = true;
      return onread.call(this, chunk);
    }
    const handle = this.pendingHandle;
    if (refused) {
      this.pendingHandle = null;
      handle?.close();
      return;
    }
    try {
      // Programs hear of messages later, so nothing of theirs is caught here.
      onread.call(this, chunk);
    } catch (error) {
      handle?.close();
      refuse(`a message that cannot be read: ${error.message}`);
    }
  };

  const receive = (outer, handle) => {
    const message = unwrap(outer);
    const wrong = fault(message, handle);
    if (wrong) {
      handle.close();
      refuse(wrong);
      return;
    }
    const { listen } = handle;
    if (listen) {
      // A server would emit its failure before the program has the server.
      handle.listen = function(...args) {
        delete handle.listen;
        const status = listen.apply(this, args);
        if (status !== 0) refuse('a server that cannot listen');
        return 0;
      };
    }
    try {
      node.call(child, message, handle);
    } catch (error) {
      handle.close();
      refuse(`a handle that cannot be used: ${error.message}`);
    }
  };
  child.removeListener('internalMessage', node);
  child.on('internalMessage', (message, handle) => {
    // What Node does about a message needs an open channel, which it asserts.
    if (refused || !child.channel) return void handle?.close?.();
    const { cmd } = message;
    const isAnswer = cmd === 'NODE_HANDLE_ACK' || cmd === 'NODE_HANDLE_NACK';
    if (isAnswer && !Array.isArray(child._handleQueue)) {
      refuse('an unexpected acknowledgement');
    } else if (cmd === 'NODE_HANDLE' && handle) {
      receive(message, handle);
    } else {
      node.call(child, message, handle);
    }
  });
  child.on('message', (message, handle) => {
    if (typeof handle?.on === 'function') tame(handle, id);
  });
};
