'use strict';
// Keeps a record of whom it serves: `A address pid` when it has a connection, `D address pid` when it has answered it.
// Arguments: port, file.
const fs = require('node:fs');
const net = require('node:net');

const record = fs.openSync(process.argv[3], 'a');
net.createServer({ allowHalfOpen: true }, (socket) => {
  const peer = socket.remoteAddress;
  fs.writeSync(record, `A ${peer} ${process.pid}\n`);
  socket.on('error', () => {});
  setTimeout(() => {
    socket.end(`0 ${process.pid}\n`, () => fs.writeSync(record, `D ${peer} ${process.pid}\n`));
  }, 2);
}).listen(Number(process.argv[2]), '127.0.0.1');
