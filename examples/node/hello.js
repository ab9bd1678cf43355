// An ordinary Node server. `troop run -w auto examples/node/hello.js` makes it a cluster.
const http = require('node:http');

const port = Number(process.env.PORT ?? 8000);
http
  .createServer((request, response) => response.end(`hello from process ${process.pid}\n`))
  .listen(port, () => console.log(`process ${process.pid} listens on http://127.0.0.1:${port}/`));
