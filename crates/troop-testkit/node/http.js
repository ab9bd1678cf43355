// The program of every introduction to clusters: a web server that says who it is. Its argument is the port.
const cluster = require('cluster');
const http = require('http');

http.createServer((request, response) => {
  const answer = () => response.end(`${cluster.worker.id} ${process.pid}`);
  setTimeout(answer, request.url === '/slow' ? 500 : 0);
}).listen(Number(process.argv[2]), '127.0.0.1');
