'use strict';

// The short way of messages, past the channel that Node has to a worker: the engine writes them to the worker, and reads the worker's, in this
// thread, when nothing else is going on. Node notices no difference: it is asked to write and told what was read in its own terms.

const { AsyncResource } = require('node:async_hooks');

/** Where Node's streams note what has become of a read or a write; `null` where it is out of reach. */
const stream = (() => {
  const before = Object.getOwnPropertyDescriptor(process, 'noDeprecation');
  try {
    // It has no successor.
    process.noDeprecation = true;
    const { streamBaseState: state, kReadBytesOrError, kArrayBufferOffset, kLastWriteWasAsync } = process.binding('stream_wrap');
    const places = [kReadBytesOrError, kArrayBufferOffset, kLastWriteWasAsync];
    return ArrayBuffer.isView(state) && places.every((place) => place in state) ? { state, places } : null;
  } catch {
    return null;
  } finally {
    delete process.noDeprecation;
    if (before) Object.defineProperty(process, 'noDeprecation', before);
  }
})();

/** What the engine calls with messages for Node's channel; `undefined` where they must go through its descriptor. */
exports.receiver = (channel) => {
  if (!stream) return;
  const { state, places: [read, offset] } = stream;
  // Whatever the program had in its asynchronous context when it made the channel is there when messages come.
  const resource = new AsyncResource('TROOPCHANNEL');
  const receive = (chunk) => {
    state[read] = chunk.byteLength;
    state[offset] = 0;
    channel.onread(chunk);
  };
  return (chunk) => resource.runInAsyncScope(receive, null, chunk);
};

/** Lets the engine write what Node would write to its channel, where it can. */
exports.shorten = (channel, member) => {
  if (!stream) return;
  const { state, places: [, , isAsync] } = stream;
  // Whether something was written to the channel that may still be there.
  let behind = false;
  const shortcut = (name, engineWrites) => {
    const write = channel[name];
    channel[name] = (request, message, handle) => {
      if (!handle && !(behind && channel.writeQueueSize > 0) && engineWrites(message, behind)) {
        behind = false;
        state[isAsync] = 0;
        return 0;
      }
      behind = true;
      return write.call(channel, request, message, handle);
    };
  };
  shortcut('writeUtf8String', member.textWriter());
  shortcut('writeBuffer', member.bytesWriter());
};
