// Does not leave by itself, and does not care for SIGTERM.
process.on('SIGTERM', () => {});
setInterval(() => {}, 1000);
require('net').createServer(() => {}).listen(0, '127.0.0.1');
