'use strict';

// Messages, whichever way they take. Argument: which scene.

const { AsyncLocalStorage } = require('node:async_hooks');
const cluster = require('node:cluster');
const fs = require('node:fs');
const net = require('node:net');
const threads = require('node:worker_threads');
const { setTimeout: sleep } = require('node:timers/promises');
const { report } = require('./report');

const MESSAGES = 6000;

const connect = (port) => new Promise((resolve, reject) => {
  net.connect(port, '127.0.0.1').on('error', reject).on('close', resolve).resume();
});

/** Numbered messages of all sizes, some of them with a socket, to be answered by the same, while connections come and go. */
async function order() {
  cluster.setupPrimary({ serialization: process.env.SERIALIZATION });
  const worker = cluster.fork();
  const port = await new Promise((resolve) => worker.on('listening', (address) => resolve(address.port)));
  const server = net.createServer().listen(0, '127.0.0.1');
  let handles = 0;
  let expected = 0;
  let wrong = 0;
  const all = new Promise((resolve) => worker.on('message', ({ n, text }, handle) => {
    if (n !== expected++ || text.length !== length(n)) wrong++;
    if (handle) {
      handles++;
      handle.close();
    }
    if (expected === MESSAGES) resolve();
  }));
  let n = 0;
  // Pauses in which nobody connects are long enough for the engine to think that nobody will.
  for (let phase = 0; phase < 4; phase++) {
    const connections = [];
    for (const end = (phase + 1) * MESSAGES / 4; n < end; n++) {
      worker.send({ n, text: 'x'.repeat(length(n)) }, n % 300 === 7 ? server : undefined);
      if (n % 50 === 0) await new Promise(setImmediate);
      if (phase % 2 === 0 && n % 20 === 0) connections.push(connect(port));
    }
    await Promise.all(connections);
    await sleep(1200);
  }
  await all;
  server.close();
  report('order', wrong, handles);
  worker.disconnect();
}

function length(n) {
  return n % 1000 === 500 ? 300_000 : n % 90;
}

function answer() {
  net.createServer((socket) => socket.end('x')).listen(0, '127.0.0.1');
  // One of its own, which can be sent.
  const server = net.createServer().listen({ port: 0, host: '127.0.0.1', exclusive: true });
  process.on('message', ({ n, text }, handle) => {
    // For a moment nothing is read, and what is on its way does not fit.
    for (const end = n % 1500 === 600 ? Date.now() + 100 : 0; Date.now() < end;);
    if (handle) handle.close();
    process.send({ n, text }, n % 400 === 9 ? server : undefined);
  });
  process.on('disconnect', () => process.exit());
}

/** More than fits, to a worker that reads late and is not told any more after that. */
function late() {
  const worker = cluster.fork();
  let answers = 0;
  worker.on('message', () => {
    if (++answers !== 101) return;
    report('answers', answers);
    worker.disconnect();
  });
  worker.on('online', () => setTimeout(() => {
    worker.send('wait');
    for (const end = Date.now() + 100; Date.now() < end;);
    for (let n = 0; n < 100; n++) worker.send('x'.repeat(10_000));
  }, 300));
}

function readLate() {
  process.on('message', (message) => {
    for (const end = message === 'wait' ? Date.now() + 500 : 0; Date.now() < end;);
    process.send(1);
  });
}

/** What surrounds a message: the program's context, and its errors. */
function context() {
  const storage = new AsyncLocalStorage();
  let sent = 0;
  const worker = storage.run('at the fork', () => cluster.fork());
  process.on('uncaughtException', (error) => report('caught', error.message));
  worker.on('message', (message) => {
    report('message', message, storage.getStore() ?? 'nothing');
    process.nextTick(report, 'tick', message);
    Promise.resolve(message).then((message) => report('promise', message));
    if (++sent === 3) worker.disconnect();
    else storage.run('at a send', () => worker.send(sent));
    throw new Error(`thrown at ${message}`);
  });
  worker.send(0, (error) => report('written', error));
}

/** The last words of a primary that ends at once. */
function lastWords() {
  const worker = cluster.fork();
  worker.on('online', () => {
    for (let n = 0; n < 100; n++) worker.send(n);
    process.exit(3);
  });
}

function hearLastWords() {
  let heard = 0;
  process.on('message', () => heard++);
  process.on('exit', () => report('heard', heard));
}

/** A primary in a thread, which is ended by another. */
async function thread() {
  if (threads.isMainThread) {
    const primary = new threads.Worker(__filename, { argv: ['thread'] });
    await new Promise((resolve) => primary.on('message', resolve));
    report('ended', await primary.terminate());
    return;
  }
  const worker = cluster.fork();
  worker.on('message', (n) => {
    if (n === 100) threads.parentPort.postMessage(n);
    worker.send(n + 1);
  });
  worker.send(0);
}

/** Workers that come and go leave nothing behind. */
async function leaks() {
  const live = async () => {
    const worker = cluster.fork();
    worker.on('message', (n) => n < 10 ? worker.send(n + 1) : worker.kill('SIGKILL'));
    worker.on('error', () => {});
    worker.send(0);
    await new Promise((resolve) => worker.on('exit', resolve));
    // To one that has died nothing is sent.
    worker.send('late', (error) => report('late', error?.code));
    await new Promise(setImmediate);
  };
  const open = () => fs.readdirSync('/proc/self/fd').length;
  for (let n = 0; n < 3; n++) await live();
  const before = open();
  for (let n = 0; n < 10; n++) await live();
  // The engine closes its own in a thread of its own.
  while (open() > before) await sleep(10);
  report('as before');
}

// The primary may have gone.
const echo = () => process.on('message', (message) => process.send(message, () => {}));
const scenes = {
  order: [order, answer],
  late: [late, readLate],
  context: [context, echo],
  'last words': [lastWords, hearLastWords],
  thread: [thread, echo],
  leaks: [leaks, echo],
};
const [primary, worker] = scenes[process.argv[2]];
if (cluster.isPrimary) primary();
else worker();
