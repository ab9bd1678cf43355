'use strict';
// An HTTP server that knows nothing of clusters. Answers with its process id, `/slow` after half a second.
const http = require('node:http');

const server = http.createServer((request, response) => {
  const answer = () => response.end(`${process.pid}\n`);
  if (request.url === '/slow') setTimeout(answer, 500);
  else answer();
});
server.listen(process.argv[2].startsWith('/') ? process.argv[2] : { host: '127.0.0.1', port: Number(process.argv[2]) });
