// Says what it, a process that it starts, a process that it forks, and a thread see of their environment.
'use strict';
const { execFileSync, fork } = require('child_process');
const { once } = require('events');
const http = require('http');
const { Worker, isMainThread, parentPort } = require('worker_threads');

const { NODE_OPTIONS } = process.env;
const seen = {
  NODE_OPTIONS,
  execArgv: process.execArgv,
  names: Object.keys(process.env).sort(),
  cached: Object.keys(require.cache).length,
  title: process.title,
};

async function all() {
  const child = fork(__filename, ['child'], { env: { ...process.env } });
  const thread = new Worker(__filename);
  const [[forked], [threaded]] = await Promise.all([once(child, 'message'), once(thread, 'message')]);
  child.kill();
  const started = execFileSync('env').toString().split('\n').map((line) => line.split('=')[0]).sort();
  return { seen, forked, threaded, started };
}

if (!isMainThread) parentPort.postMessage(seen);
else if (process.argv[2] === 'child') process.send(seen);
else http.createServer(async (request, response) => response.end(JSON.stringify(await all()))).listen(0, '127.0.0.1');
