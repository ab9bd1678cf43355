// Takes its socket by activation, and speaks nothing of Node's protocol.
'use strict';
const http = require('http');
const { LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES, EINHORN_FD_0, NODE_CHANNEL_FD } = process.env;
if (Number(LISTEN_PID) !== process.pid) throw new Error(`these sockets are for ${LISTEN_PID}, not for ${process.pid}`);
const known = { pid: process.pid, LISTEN_FDS, LISTEN_FDNAMES, EINHORN_FD_0, channel: NODE_CHANNEL_FD ?? null, args: process.argv.slice(2) };
const server = http.createServer((request, response) => {
  const answer = () => response.end(JSON.stringify(known));
  if (request.url === '/slow') setTimeout(answer, 500);
  else answer();
});
server.listen({ fd: 3 });
process.on('SIGTERM', () => server.close());
// Something is to be finished.
if (process.argv.includes('--stays')) setInterval(() => {}, 1000);
