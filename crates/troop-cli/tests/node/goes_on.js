// Serves by itself, as h3's listen() does, on the port in the file "port"; the first worker chooses it. Where it
// is in use, a worker says so and goes on without it. With "child" the server is a process that it starts, as
// under nodemon; with "pipe" it listens for that one on a path of its own, as tsx does.
const fs = require('node:fs');
function listen() {
  let port = 0;
  try {
    fs.closeSync(fs.openSync('first', 'wx'));
  } catch {
    if (!fs.existsSync('port')) return setTimeout(listen, 10);
    port = Number(fs.readFileSync('port'));
  }
  const server = require('node:http').createServer((request, response) => response.end(String(process.pid)));
  server.on('error', (e) => console.error(e.message));
  server.listen({ port, host: '127.0.0.1', exclusive: true }, () => {
    fs.writeFileSync('new', String(server.address().port));
    fs.renameSync('new', 'port');
  });
}
if (process.argv[2] === 'pipe') require('node:net').createServer().listen(`${process.cwd()}/${process.pid}.pipe`);
if (process.argv[2]) {
  require('node:child_process').spawn(process.execPath, [__filename], { stdio: 'inherit' });
} else {
  listen();
  setInterval(() => {}, 1000);
}
