'use strict';

// What the drop-in can do and Node cannot. The argument says what.

const cluster = require('node:cluster');
const { once } = require('node:events');
const fs = require('node:fs');
const net = require('node:net');
const { report } = require('./report');

function ask(port, from) {
  return new Promise((resolve, reject) => {
    const client = net.connect({ port, host: '127.0.0.1', localAddress: from }).setEncoding('utf8');
    let text = '';
    client.on('data', (part) => { text += part; }).on('end', () => resolve(text)).on('error', reject);
  });
}

const started = async (count, env) => {
  for (let i = 0; i < count; i++) cluster.fork(env);
  let address;
  for (let i = 0; i < count; i++) [, address] = await once(cluster, 'listening');
  return address.port;
};

const scenes = {
  // A function chooses, by the client's address; when it fails, the connection is served all the same.
  async choice() {
    cluster.schedulingPolicy = ({ remoteAddress, remotePort, remoteFamily, localPort }, candidates) => {
      report('asked', remoteAddress, remoteFamily, typeof remotePort, localPort, candidates.map(({ worker, ready, open, pending, weight }) =>
        [worker.id, ready, typeof open, typeof pending, weight]));
      if (remoteAddress === '127.0.0.9') throw new Error('undecided');
      if (remoteAddress === '127.0.0.8') return 'nonsense';
      if (remoteAddress === '127.0.0.7') return undefined;
      const wanted = Number(remoteAddress.at(-1));
      return wanted === 2 ? cluster.workers[2] : candidates.find(({ worker }) => worker.id === wanted);
    };
    process.on('uncaughtException', ({ name, message }) => report('caught', name, message));
    const port = await started(3);
    for (const from of ['127.0.0.1', '127.0.0.1', '127.0.0.2', '127.0.0.2', '127.0.0.3', '127.0.0.3']) report('served', from, await ask(port, from));
    for (const from of ['127.0.0.7', '127.0.0.8', '127.0.0.9']) report('served', from, typeof await ask(port, from));
    report('counters', Object.values(cluster.workers).map((worker) => worker.counters().taken).reduce((sum, taken) => sum + taken));
  },

  async counters() {
    const port = await started(2);
    for (let i = 0; i < 6; i++) await ask(port);
    const [first, second] = Object.values(cluster.workers);
    report(first.counters(), second.counters());
    second.disconnect();
    await once(second, 'exit');
    report(second.counters().taken);
  },

  // Few connections are handed over in exact turns.
  async auto() {
    cluster.schedulingPolicy = 'auto';
    const port = await started(2);
    for (let i = 0; i < 6; i++) report(await ask(port));
    report(Object.values(cluster.workers).map((worker) => worker.counters().taken));
  },

  // Whoever dies comes back with the same environment, however often.
  async respawn() {
    cluster.setupPrimary({ respawn: { delay: 10, restarts: 3, within: 60_000 } });
    cluster.on('respawnLimit', () => report('gave up'));
    const port = await started(1, { MARK: 'x' });
    for (let i = 0; i < 5; i++) {
      report(await ask(port));
      const [old] = Object.values(cluster.workers);
      old.process.kill('SIGKILL');
      await once(cluster, 'listening');
    }
  },

  // One worker dies whenever it is started, another one when it is told to.
  async 'one that keeps dying'() {
    cluster.setupPrimary({ respawn: { delay: 10, maxDelay: 40, restarts: 3 } });
    cluster.on('respawnLimit', () => report('gave up'));
    const port = await started(1);
    const [good] = Object.values(cluster.workers);
    let deaths = 0;
    cluster.on('exit', ({ id }, code) => { if (code === 7) deaths++; });
    cluster.fork({ DIES: 1 });
    const dies = async (times) => { while (deaths < times) await once(cluster, 'exit'); };
    await dies(8);
    good.process.kill('SIGKILL');
    await once(cluster, 'listening');
    report('served', await ask(port) !== 'worker 1');
    const before = deaths;
    await dies(before + 2);
  },

  // The pauses of one slot are its own.
  async 'pauses of one slot'() {
    cluster.setupPrimary({ respawn: { delay: 100, maxDelay: 100_000, minUptime: 3_600_000 } });
    await started(1);
    const [good] = Object.values(cluster.workers);
    cluster.fork({ DIES: 1 });
    for (let deaths = 0; deaths < 5;) if ((await once(cluster, 'exit'))[1] === 7) deaths++;
    const since = Date.now();
    const forks = [];
    cluster.on('fork', (worker) => forks.push([worker, Date.now() - since]));
    good.process.kill('SIGKILL');
    const [successor] = await once(cluster, 'listening');
    while (forks.length < 2) await once(cluster, 'fork');
    // Of 100 ms, and of 1,600 ms or up to a quarter less.
    const [[first, soon], [second, late]] = forks;
    report(first === successor, soon < 1000, second !== successor, late >= 1100);
  },

  // A worker waits for its next life, and a reload does not wait for that.
  async 'reload during a pause'() {
    cluster.setupPrimary({ respawn: { delay: 60_000, maxDelay: 60_000 } });
    const port = await started(2);
    const [first] = Object.values(cluster.workers);
    first.process.kill('SIGKILL');
    await once(first, 'exit');
    report(Object.keys(cluster.workers).length, await cluster.reload(), Object.keys(cluster.workers).map(Number));
    report(new Set(await Promise.all([ask(port), ask(port)])).size);
  },

  // What is killed by its primary's program stays away, and signals that end nobody mean nothing.
  async 'killed by the program'() {
    cluster.setupPrimary({ respawn: { delay: 10 } });
    await started(2);
    const [first, second] = Object.values(cluster.workers);
    second.kill('SIGCONT');
    first.kill('SIGKILL');
    await once(first, 'exit');
    cluster.on('fork', () => report('came back'));
    second.process.kill('SIGKILL');
    await once(cluster, 'listening');
    report(Object.keys(cluster.workers).length, first.exitedAfterDisconnect);
  },

  // A worker dies, and its program kills it before it hears of that.
  async 'killed when it had died'() {
    cluster.setupPrimary({ respawn: { delay: 0 } });
    await started(1);
    const [worker] = Object.values(cluster.workers);
    cluster.on('fork', () => report('came back'));
    const { pid } = worker.process;
    process.kill(pid, 'SIGKILL');
    while (!/\) Z /.test(fs.readFileSync(`/proc/${pid}/stat`, 'utf8')));
    // The engine has looked since, and has wanted a successor.
    for (let turn = 0; turn < 3; turn++) worker.counters();
    worker.kill();
    const [code, signal] = await once(worker, 'exit');
    report(code, signal);
    // What the engine had asked for by then has been heard.
    for (let turn = 0; turn < 3; turn++) await new Promise(setImmediate);
    report(Object.keys(cluster.workers).length);
  },

  // In which order the program hears of a death and of a new life.
  async 'order of a respawn'() {
    cluster.setupPrimary({ respawn: { minUptime: 0 } });
    await started(1);
    for (const event of ['fork', 'online', 'listening', 'disconnect', 'exit']) cluster.on(event, ({ id }) => report(event, id));
    const [worker] = Object.values(cluster.workers);
    process.kill(worker.process.pid, 'SIGKILL');
    // The engine sees it first.
    for (const until = Date.now() + 1000; Date.now() < until;);
    await once(cluster, 'listening');
  },

  // A worker that was told to leave does not come back, and neither does anybody when all are.
  async 'no respawn'() {
    cluster.setupPrimary({ respawn: true });
    await started(2);
    const [first] = Object.values(cluster.workers);
    first.disconnect();
    await once(first, 'exit');
    cluster.on('fork', () => report('came back'));
  },

  // Everybody is told to leave while workers are replaced one after the other, or come back.
  async 'disconnect during a reload'() {
    await started(2);
    const reload = cluster.reload({ surge: 1 }).catch(({ code }) => code);
    await once(cluster, 'listening');
    cluster.disconnect(() => report('all gone', Object.keys(cluster.workers).length));
    report(await reload);
  },

  async 'disconnect at an exit'() {
    cluster.setupPrimary({ respawn: true });
    await started(2);
    cluster.once('exit', () => cluster.disconnect());
    cluster.on('fork', () => report('came back'));
    Object.values(cluster.workers)[0].process.kill('SIGKILL');
    await once(cluster, 'exit');
  },

  // One new worker ends after it was ready, while the other is still starting.
  async 'ready and gone'() {
    const port = await started(2);
    fs.writeFileSync(process.env.VERSION, 'shaky');
    const failure = await cluster.reload().catch((error) => error);
    report(failure.code, failure.message, Object.keys(cluster.workers).map(Number));
    report(typeof await ask(port));
  },

  // New workers, while clients go on; then a version that does not start, which changes nothing.
  async reload() {
    const port = await started(2);
    const version = (text) => fs.writeFileSync(process.env.VERSION, text);
    let asked = 0;
    let going = true;
    const seen = new Set();
    const clients = Promise.all(Array.from({ length: 4 }, async () => {
      while (going) {
        seen.add(await ask(port));
        asked++;
      }
    }));
    const ids = () => Object.keys(cluster.workers).map(Number);
    for (const options of [{}, { surge: 1, minUptime: 50 }]) {
      report(await cluster.reload(options), ids());
    }
    for (const bad of ['throws', 'exits', 'silent']) {
      version(bad);
      const failure = await cluster.reload({ timeout: bad === 'silent' ? 300 : 30_000 }).catch((error) => error);
      report(bad, failure.code, failure.message.replace(/process \d+/g, 'process N'), failure.replaced, ids());
    }
    version('good');
    const both = await Promise.allSettled([cluster.reload(), cluster.reload()]);
    report(both.map(({ status, reason }) => [status, reason?.code]));
    for (const options of [{ surge: 0 }, { speed: 1 }, { ready: 'never' }]) {
      report(await cluster.reload(options).catch(({ code, message }) => [code, message]));
    }
    going = false;
    await clients;
    report(asked > 0, [...seen].every((text) => text.startsWith('worker')));
  },
};

if (cluster.isPrimary) {
  scenes[process.argv[2]]().then(() => cluster.disconnect());
} else {
  if (process.env.DIES) process.exit(7);
  const version = process.env.VERSION && fs.existsSync(process.env.VERSION) ? fs.readFileSync(process.env.VERSION, 'utf8') : 'good';
  if (version === 'throws') {
    process.on('uncaughtException', () => process.exit(9));
    throw new Error('a bad version');
  }
  if (version === 'exits') process.exit(3);
  const gone = `${process.env.VERSION}.gone`;
  if (version === 'shaky' && cluster.worker.id % 2 === 0) {
    const wait = (ms) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
    for (const from = Date.now(); !fs.existsSync(gone) && Date.now() - from < 20_000;) wait(10);
    // Until the primary knows.
    wait(500);
  }
  if (version !== 'silent') {
    net.createServer((socket) => socket.end(`worker ${cluster.worker.id}${process.env.MARK ?? ''}`)).listen(0, '127.0.0.1', () => {
      if (version !== 'shaky') return;
      if (cluster.worker.id % 2 === 0) return void setTimeout(() => process.exit(9), 5000);
      setTimeout(() => {
        fs.writeFileSync(gone, '');
        process.exit(9);
      }, 50);
    });
  }
}
