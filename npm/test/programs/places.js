'use strict';

// Workers that listen where a file says: ports and paths, one a line; `{pid}` stands for the process, `!` before a path removes it, and `=` before a port is `exclusive`. The argument says what happens.

const cluster = require('node:cluster');
const { randomInt } = require('node:crypto');
const { once } = require('node:events');
const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const { setTimeout: pause } = require('node:timers/promises');
const { report } = require('./report');

const { DIRECTORY } = process.env;
const file = (name) => path.join(DIRECTORY, name);
const places = (name, ...lines) => fs.writeFileSync(file(name), lines.join('\n'));

/** A free port below those that the kernel gives to others: to clients, and to tests that listen on port 0 at the same time. */
async function freePort() {
  const highest = Number(fs.readFileSync('/proc/sys/net/ipv4/ip_local_port_range', 'utf8').split(/\s/)[0]);
  for (;;) {
    const port = randomInt(Math.min(10_000, highest - 5000), highest);
    const server = net.createServer().listen(port, '127.0.0.1');
    const isFree = await once(server, 'listening').then(() => true, () => false);
    if (!isFree) continue;
    server.close();
    await once(server, 'close');
    return port;
  }
}

/** What is answered, or why nothing is. */
function ask(place) {
  return new Promise((resolve) => {
    const client = (typeof place === 'string' ? net.connect(place) : net.connect(place, '127.0.0.1')).setEncoding('utf8');
    let text = '';
    client.on('data', (part) => { text += part; }).on('end', () => resolve(text)).on('error', ({ code }) => resolve(code));
  });
}

const isServed = async (port) => /^worker/.test(await ask(port));

/** Until nobody listens there; one who waits there is not left alone with that. */
async function closed(port) {
  for (const deadline = Date.now() + 20_000; Date.now() < deadline; await pause(50)) {
    if (await ask(port) === 'ECONNREFUSED') return true;
  }
  return false;
}

async function started(...names) {
  for (const PLACES of names) {
    cluster.fork({ PLACES });
    await once(cluster, 'listening');
  }
}

async function dies() {
  const worker = Object.values(cluster.workers).at(-1);
  worker.process.kill('SIGKILL');
  await once(worker, 'exit');
}

const scenes = {
  // A worker dies, and what comes in its place listens elsewhere.
  async 'respawn elsewhere'() {
    cluster.setupPrimary({ respawn: { delay: 300 } });
    const [old, next] = [await freePort(), await freePort()];
    places('a', old);
    await started('a');
    report('served', await isServed(old));
    await dies();
    // Clients wait meanwhile.
    report('waited', await isServed(old));
    places('a', next);
    await dies();
    await once(cluster, 'listening');
    report('closed', await closed(old), await isServed(next));
  },

  // Each life has a path of its own.
  async paths() {
    cluster.setupPrimary({ respawn: { delay: 10, minUptime: 0, restarts: 100 } });
    places('a', await freePort());
    places('b', file('ps-{pid}.sock'));
    await started('a', 'b');
    const descriptors = () => fs.readdirSync('/proc/self/fd').length;
    const paths = () => fs.readdirSync(DIRECTORY).filter((name) => name.startsWith('ps-')).length;
    const before = descriptors();
    for (let life = 0; life < 20; life++) {
      await dies();
      await once(cluster, 'listening');
    }
    const isLeft = () => paths() > 1 || descriptors() > before;
    for (const deadline = Date.now() + 20_000; Date.now() < deadline && isLeft();) await pause(50);
    report('left', paths(), descriptors() <= before);
  },

  // Programs that remove the path before they listen, whoever else listens there.
  async unlinks() {
    cluster.setupPrimary({ respawn: { delay: 10, minUptime: 0, restarts: 100 } });
    places('a', `!${file('s')}`);
    const serve = async () => {
      const served = new Set();
      for (let n = 0; n < 16; n++) served.add(await ask(file('s')));
      return [...served].sort();
    };
    await started('a', 'a', 'a', 'a');
    report('start', await serve());
    let listening = 0;
    cluster.on('listening', () => { listening += 1; });
    report('reload', await cluster.reload(), listening, await serve());
    await dies();
    await once(cluster, 'listening');
    report('crash', await serve());
  },

  // Nobody comes any more, while another one goes on serving elsewhere.
  async 'told to leave'() {
    cluster.setupPrimary({ respawn: { delay: 10 } });
    const [other, own] = [await freePort(), await freePort()];
    places('a', other);
    places('b', own);
    await started('a', 'b');
    await dies();
    await once(cluster, 'listening');
    Object.values(cluster.workers).at(-1).disconnect();
    report('closed', await closed(own), await isServed(other));
  },

  // Each of two workers has a port of its own, and the new version of one of them does not.
  async 'ports of their own'() {
    const [first, second, next] = [await freePort(), await freePort(), await freePort()];
    places('a', first);
    places('b', second);
    await started('a', 'b');
    places('b', next);
    const failure = await cluster.reload({ timeout: 4000 }).catch((error) => error);
    report(failure.code, failure.message?.replace(`${second}`, 'PORT'), await isServed(first), await isServed(second), await closed(next));
  },

  // A port that the worker binds itself, which its successor cannot have.
  async 'past the cluster'() {
    const port = await freePort();
    places('a', `=${port}`);
    cluster.fork({ PLACES: 'a' });
    while (!await isServed(port)) await pause(20);
    const failure = await cluster.reload({ timeout: 1500 }).catch((error) => error);
    report(failure.code, failure.message?.replace(/process \d+/, 'process N'), await ask(port));
    // One that says when it is ready, which it was too early.
    report(await cluster.reload({ ready: 'online', killTimeout: 500 }), await closed(port));
  },

  // What nobody has is closed at once, as in Node.
  async plain() {
    const [other, own] = [await freePort(), await freePort()];
    // Two of these programs run at a time.
    const names = ['a', 'b'].map((name) => `${name}-${process.pid}`);
    places(names[0], other);
    places(names[1], own);
    await started(...names);
    report('served', await isServed(own));
    await dies();
    report('died', await ask(own), await isServed(other));
    Object.values(cluster.workers)[0].disconnect();
    report('told', await closed(other) && await ask(other));
  },

  // A version that listens elsewhere.
  async reload() {
    const [old, next] = [await freePort(), await freePort()];
    for (const workers of [1, 2]) {
      places('a', old);
      await started(...Array(workers).fill('a'));
      places('a', next);
      for (const surge of [1, 10]) {
        // Time enough for a worker to start.
        const failure = await cluster.reload({ timeout: 4000, surge }).catch((error) => error);
        report(failure.code, failure.message?.replace(`${old}`, 'PORT'), failure.replaced, await isServed(old), await closed(next));
      }
      report(await cluster.reload({ allowMoved: true }), await closed(old), await isServed(next));
      // Late, and on one more.
      const third = await freePort();
      places('a', third, 'wait', next);
      report(await cluster.reload({ surge: 1 }), await isServed(next), await isServed(third));
      await new Promise((resolve) => cluster.disconnect(resolve));
    }
    report(await cluster.reload({ allowMoved: 1 }).catch(({ message }) => message));
  },
};

if (cluster.isPrimary) {
  scenes[process.argv[2]]().then(() => cluster.disconnect());
} else {
  (async () => {
    for (const place of fs.readFileSync(file(process.env.PLACES), 'utf8').split('\n')) {
      if (place === 'wait') {
        await pause(700);
        continue;
      }
      const server = net.createServer((socket) => socket.end(`worker ${cluster.worker.id}`));
      if (place.startsWith('=')) server.on('error', () => {}).listen({ port: Number(place.slice(1)), host: '127.0.0.1', exclusive: true });
      else if (/^\d+$/.test(place)) server.listen(Number(place), '127.0.0.1');
      else {
        const at = place.replace('{pid}', process.pid).replace(/^!/, '');
        if (place.startsWith('!')) fs.rmSync(at, { force: true });
        server.listen(at);
      }
    }
  })();
}
