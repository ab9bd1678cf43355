'use strict';

// Protects the primary's process from invalid input of a worker. Node trusts workers: a malformed frame, an unexpected acknowledgement or a
// handle of an unknown type throws inside Node, where no program can catch it. The engine rejects most of that before Node reads it; this
// module rejects the rest and kills the worker.

const { constants: { signals } } = require('node:os');

const STREAMS = ['TCP', 'Pipe'];
/** The types of handles that Node knows, and the classes of their objects. */
const HANDLES = new Map([
  ['net.Native', STREAMS],
  ['net.Server', STREAMS],
  ['net.Socket', STREAMS],
  ['dgram.Native', ['UDP']],
  ['dgram.Socket', ['UDP']],
]);
/** Node sends an undelivered handle again, each time in one more wrapping, which it cannot read itself. */
const MAX_WRAPPINGS = 4;

/** Whether a message is internal, by the rule of Node's channel. */
function isInternal(message) {
  return message !== null && typeof message === 'object' && typeof message.cmd === 'string' &&
    message.cmd.length > 'NODE_'.length && message.cmd.startsWith('NODE_');
}

/** Returns the message of a handle without the wrappings of earlier attempts. */
function unwrap(message) {
  for (let n = 1; n < MAX_WRAPPINGS && isInternal(message.msg) && message.msg.cmd === 'NODE_HANDLE'; n++) message = message.msg;
  return message;
}

/** Returns the fault of a message that announces a handle, if it has one. */
function fault({ type, key, dgramType, msg }, handle) {
  if (typeof type !== 'string' || !HANDLES.get(type)?.includes(handle.constructor.name)) return `a handle that is no ${String(type)}`;
  // Node uses the key in an ordinary object, whose inherited properties must not be found.
  if (key !== undefined && (typeof key !== 'string' || key in {})) return 'a handle of a server that cannot be';
  if (type === 'dgram.Socket' && dgramType !== 'udp4' && dgramType !== 'udp6') return 'a datagram socket of no family';
  if (isInternal(msg)) return 'a handle for Node itself';
}

/** Makes an unhandled error of a received socket a warning: the program may not know of the socket. */
function tame(handle, id) {
  handle.on('error', ({ message }) => {
    if (handle.listenerCount('error') > 1) return;
    process.emitWarning(`a socket that worker ${id} sent has failed: ${message}`, { type: 'TroopWarning' });
  });
}

/** Guards the end of a worker's channel that Node has just set up. */
exports.guard = (child, channel, id) => {
  const node = child.listeners('internalMessage')[0];
  // A process that could not be started has no listener.
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
      // End of the channel. Node would emit an error if the program has called `disconnect` and a handle is unconfirmed.
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
      // Messages are emitted later, so errors of the program's listeners are not caught here.
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
      // A server would emit an error before the program receives the server.
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
    // Node asserts that the channel is open.
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
