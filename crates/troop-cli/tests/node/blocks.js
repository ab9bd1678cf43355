// Its first connection blocks it for a while.
let blocked = false;
require('net').createServer((socket) => {
  socket.on('error', () => {});
  if (!blocked) {
    blocked = true;
    const end = Date.now() + 1500;
    while (Date.now() < end);
  }
  socket.end(`${process.pid}\n`);
}).listen(0, '127.0.0.1');
