'use strict';

// Direct I/O for messages, bypassing Node's channel to a worker: while the engine has nothing else to do for the worker, it writes and reads
// messages in this thread. It does so behind Node's own stream interface, so Node's code is unchanged.

const { AsyncResource } = require('node:async_hooks');

/** The state in which Node's streams record the result of a read or a write; `null` where this Node does not expose it. */
const stream = (() => {
  const before = Object.getOwnPropertyDescriptor(process, 'noDeprecation');
  try {
    // `process.binding` is deprecated, and nothing replaces it here.
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

/** Returns the function that the engine calls with messages for Node's channel; `undefined` where they must go through its descriptor. */
exports.receiver = (channel) => {
  if (!stream) return;
  const { state, places: [read, offset] } = stream;
  // Messages are received in the asynchronous context in which the program forked the worker.
  const resource = new AsyncResource('TROOPCHANNEL');
  const receive = (chunk) => {
    state[read] = chunk.byteLength;
    state[offset] = 0;
    channel.onread(chunk);
  };
  return (chunk) => resource.runInAsyncScope(receive, null, chunk);
};

/** Replaces the channel's write functions by ones that let the engine write directly, where it can. */
exports.shorten = (channel, member) => {
  if (!stream) return;
  const { state, places: [, , isAsync] } = stream;
  // Whether the last write went to the channel's descriptor, so that it may still be queued there.
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
