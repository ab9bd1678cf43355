'use strict';

// Loaded into workers before the script that moves connections: none can be sent.
const { send } = process;
process.send = function(message, handle, options, callback) {
  if (message?.act !== 'move') return send.call(this, message, handle, options, callback);
  setImmediate(() => {
    callback(new Error('refused'));
    send.call(process, 'refused');
  });
  return true;
};
