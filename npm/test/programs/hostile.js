'use strict';

// Workers that write to their channels what no Node writes: bytes, values and handles, in both serializations. Reports how each ended, and what
// the primary would have died of.

const cluster = require('node:cluster');
const dgram = require('node:dgram');
const net = require('node:net');
const v8 = require('node:v8');
const { report } = require('./report');

const SERIALIZATION = process.env.SERIALIZATION;
const AT_ONCE = 6;

const CMD = { cmd: 'NODE_HANDLE_ACK' };
const handle = (fields) => ({ cmd: 'NODE_HANDLE', type: 'net.Socket', msg: 'x', ...fields });

/** Values as Node frames them, whatever the serialization. */
const VALUES = {
  'an answer that nobody waits for': CMD,
  'a refusal that nobody waits for': { cmd: 'NODE_HANDLE_NACK' },
  'an act of no type': { cmd: 'NODE_CLUSTER', act: { toString: 1, valueOf: 1 } },
  'a key of no type': { cmd: 'NODE_SOCKET_GET_COUNT', key: { toString: 1, valueOf: 1 } },
  'a count of nothing': { cmd: 'NODE_SOCKET_COUNT', key: '__proto__', count: {} },
  'an unknown message': { cmd: 'NODE_WHATEVER', act: 7, key: [], msg: null },
  'names of prototypes': JSON.parse('{"__proto__":{"cmd":"NODE_HANDLE_ACK"},"constructor":1,"toString":2}'),
};

/** The same with a handle: which one, and the value. */
const HANDLES = {
  'a socket of no type': ['tcp', handle({ type: undefined })],
  'a socket of an unknown type': ['tcp', handle({ type: 'constructor' })],
  'a socket whose type is an object': ['tcp', handle({ type: { toString: 1, valueOf: 1 } })],
  'a socket of no server': ['tcp', handle({ key: '__proto__' })],
  'a socket of the server constructor': ['tcp', handle({ key: 'constructor' })],
  'a socket whose key is an object': ['tcp', handle({ key: { toString: 1, valueOf: 1 } })],
  'a socket as a datagram socket': ['tcp', handle({ type: 'dgram.Socket', dgramType: 'udp4' })],
  'a socket as a server': ['tcp', handle({ type: 'net.Server' })],
  'a server as a socket': ['server', handle()],
  'a datagram socket of no family': ['udp', handle({ type: 'dgram.Socket' })],
  'a datagram socket of an unknown family': ['udp', handle({ type: 'dgram.Socket', dgramType: 'udp5' })],
  'a datagram socket with options': ['udp', handle({ type: 'dgram.Socket', dgramType: { type: 'udp4', lookup: 1 } })],
  'a datagram socket as a stream': ['udp', handle()],
  'a socket within a socket of no type': ['tcp', handle({ type: 'none', msg: handle() })],
  'sockets within sockets': ['tcp', handle({ msg: handle({ msg: handle({ msg: handle({ msg: handle({ msg: handle() }) }) }) }) })],
  'an answer that comes with a socket': ['tcp', handle({ msg: CMD })],
  'a socket beside an ordinary message': ['tcp', { hello: 1 }],
  'a socket that nobody is told of': ['tcp', { cmd: 'NODE_WHATEVER' }],
  'a socket that fails at once': ['reset', handle()],
  'a datagram socket that fails': ['refused', handle({ type: 'dgram.Socket', dgramType: 'udp4' })],
};

/** Bytes, without framing. */
const LINES = {
  'escaped letters': '{"cmd":"\\u004eODE_HANDLE_ACK"}\n',
  'an escaped name': '{"\\u0063md":"NODE_HANDLE_ACK"}\n',
  'two commands': '{"cmd":"x","cmd":"NODE_HANDLE_ACK"}\n',
  'two commands of Node': '{"cmd":"NODE_X","cmd":"NODE_HANDLE_ACK"}\n',
  'half a character': '{"\\ud800":1,"cmd":"NODE_HANDLE_ACK"}\n',
  'no JSON after an unknown message': '{"cmd":"NODE_X","ack":"x",,,\n',
  'no JSON': 'junk\n',
  'no Unicode': Buffer.from('"\xff\xfe"\n', 'latin1'),
  'a mark of the byte order': '\ufeff{"a":1}\n',
  'a line without an end': '{"a":',
  'deep': `${'['.repeat(100_000)}${']'.repeat(100_000)}\n`,
};

/** A frame around a value that is written by hand. */
const raw = (...parts) => {
  const value = Buffer.concat(parts.map((part) => Buffer.isBuffer(part) ? part : Buffer.from(part, 'latin1')));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(value.length + 2);
  return Buffer.concat([length, Buffer.from([0xff, 15]), value]);
};
const ACK = '"\x03cmd"\x0fNODE_HANDLE_ACK';
const SPARSE = 'a\xff\xff\xff\x0f@\0\xff\xff\xff\x0f';
const FRAMES = {
  'no value': Buffer.from('\0\0\0\x04junk', 'latin1'),
  'an empty frame': Buffer.from('\0\0\0\0', 'latin1'),
  'only a version': raw(),
  'an unknown version': Buffer.from('\0\0\0\x03\xff\x7f0', 'latin1'),
  'an old version': Buffer.from('\0\0\0\x03\xff\x010', 'latin1'),
  'half a value': raw('o"\x01x'),
  'a huge length': Buffer.from('\xff\xff\xff\xff\xff\x0f0', 'latin1'),
  'a frame without an end': Buffer.from('\0\0\0\x20\xff\x0f', 'latin1'),
  'an unknown tag': raw('!'),
  'shared memory': raw('u\0'),
  'a shared object': raw('p\0'),
  'moved memory': raw('t\0'),
  'a module': raw('w\0'),
  'a view of no type': raw('\\\0\x7f\0'),
  'a view that does not fit': raw('\\\0\x05\x03abc'),
  'an object of no kind': raw('\\\x07'),
  'an object that is none': raw('\\\x01', 'I\x02'),
  'an expression that is none': raw('R"\x01(\0'),
  'a reference to nothing': raw('^\x09'),
  'fields twice': raw(`o"\x01xI\x02"\x01xI\x02{\x02`),
  'a handle within itself that did not arrive': raw('o"\x03cmd"\x0bNODE_HANDLE"\x04type"\x0anet.Socket"\x03msg^\0{\x03'),
  'an answer as an array': raw(`A\0${ACK}$\x01\0`),
  'an answer as an array with holes': raw(`a\x05${ACK}@\x01\x05`),
  'an answer that is counted': raw(`?\x01o${ACK}{\x01`),
  'an answer that is wrapped': raw(`\\\x01o${ACK}{\x01`),
  'an answer behind a map': raw(`o"\x01x;:\0${ACK}{\x02`),
  'an answer behind brackets': raw(`o"\x01x${'A\x01'.repeat(50)}0${'$\0\x01'.repeat(50)}${ACK}{\x02`),
  'an answer in wide letters': raw('o"\x03cmdc\x1e', Buffer.from('NODE_HANDLE_ACK', 'utf16le'), '{\x01'),
  'an answer with its field twice': raw(`o"\x03cmd"\x06NODE_X${ACK}{\x02`),
  'deep': raw('A\x01'.repeat(200_000), '0', '$\0\x01'.repeat(200_000)),
  'more memory than there is': raw('A\x20', SPARSE.repeat(32), '$\0\x20'),
  'a million maps': raw('A\x80\x80\x80\x02', ';:\0'.repeat(4 << 20), '$\0\x80\x80\x80\x02'),
};
if (SERIALIZATION === 'advanced') {
  Object.assign(VALUES, {
    'values that only V8 has': { m: new Map([[1, new Set([2n])]]), e: new TypeError('x', { cause: 1 }), d: new Date(NaN), b: Buffer.alloc(3) },
    'an unknown message behind a map': { m: new Map(), cmd: 'NODE_WHATEVER' },
    'an answer as an array of values': Object.assign([1], CMD),
  });
  const own = Object.assign([1], handle());
  HANDLES['a socket within a disguised one'] = ['tcp', handle({ msg: own })];
  HANDLES['a disguised socket'] = ['tcp', own];
}

const ABUSES = { ...VALUES, ...HANDLES, ...(SERIALIZATION === 'advanced' ? FRAMES : LINES) };

async function primary() {
  process.on('uncaughtException', ({ name, message }) => report('uncaught', `${name}: ${message}`));
  let [killed, said] = [0, 0];
  process.on('warning', ({ message }) => {
    said += / was killed because it sent /.test(message);
    report('warning', message);
  });
  cluster.setupPrimary({ serialization: SERIALIZATION });
  const served = cluster.fork({ SERVE: 'yes' });
  const port = await new Promise((resolve) => served.once('listening', (address) => resolve(address.port)));
  const names = Object.keys(ABUSES);
  const next = async () => {
    const name = names.pop();
    if (name === undefined) return;
    const worker = cluster.fork({ ABUSE: name });
    worker.on('error', ({ message }) => report('error', name, message));
    // A program that knows nothing of handles. What is said afterwards shows that the worker may go on.
    worker.on('message', (message) => message === 'x' && worker.kill());
    const [code, signal] = await new Promise((resolve) => worker.on('exit', (...how) => resolve(how)));
    killed += signal === 'SIGKILL';
    report('exit', name, signal ?? code, worker.id);
    await next();
  };
  await Promise.all(Array.from({ length: AT_ONCE }, next));
  // The engine's thread says why in its own time.
  for (const end = Date.now() + 10_000; said < killed && Date.now() < end;) await new Promise((resolve) => setTimeout(resolve, 10));
  net.connect(port, '127.0.0.1').setEncoding('utf8').once('data', (text) => {
    report(text);
    // Sockets that were sent to a program that knows nothing of them are open, as in Node.
    cluster.disconnect(() => process.exit());
  });
}

/** A socket of each kind, as the object that a channel of Node's sends. */
const sockets = {
  tcp: async () => (await connected())._handle,
  server: async () => (await listening())._handle,
  async udp() {
    const socket = dgram.createSocket('udp4');
    await new Promise((resolve) => socket.bind(0, '127.0.0.1', resolve));
    return socket[Object.getOwnPropertySymbols(socket).find((symbol) => symbol.description === 'state symbol')].handle;
  },
  async refused() {
    const socket = dgram.createSocket('udp4').on('error', () => {});
    await new Promise((resolve) => socket.connect(9, '127.0.0.1', resolve));
    const { handle } = socket[Object.getOwnPropertySymbols(socket).find((symbol) => symbol.description === 'state symbol')];
    // The answer, that nobody is there, is the socket's error, whoever reads from it.
    handle.recvStop();
    socket.send('x');
    return handle;
  },
};

function listening() {
  // One of its own.
  const server = net.createServer();
  return new Promise((resolve) => server.listen({ port: 0, host: '127.0.0.1', exclusive: true }, () => resolve(server)));
}

async function connected() {
  const server = await listening();
  const accepted = new Promise((resolve) => server.on('connection', resolve));
  const client = net.connect({ port: server.address().port, host: '127.0.0.1' });
  client.pause();
  const other = await accepted;
  await new Promise((resolve) => client.readyState === 'open' ? resolve() : client.on('connect', resolve));
  return Object.assign(client, { other });
}

/** As Node does it, in either serialization. */
function framed(value) {
  if (SERIALIZATION !== 'advanced') return Buffer.from(`${JSON.stringify(value)}\n`);
  class Serializer extends v8.DefaultSerializer {
    _writeHostObject(object) {
      this.writeUint32(ArrayBuffer.isView(object) ? 0 : 1);
      return ArrayBuffer.isView(object) ? super._writeHostObject(object) : this.writeValue({ ...object });
    }
  }
  const serializer = new Serializer();
  serializer.writeHeader();
  serializer.writeValue(value);
  const body = serializer.releaseBuffer();
  return raw(body.subarray(2));
}

async function worker(name) {
  // Its own Node does not expect the answers.
  process.on('uncaughtException', () => {});
  const symbol = Object.getOwnPropertySymbols(process).find(({ description }) => description === 'kChannelHandle');
  const channel = process[symbol];
  const { WriteWrap } = process.binding('stream_wrap');
  const bytes = name in VALUES ? framed(VALUES[name]) : name in HANDLES ? framed(HANDLES[name][1]) : Buffer.from(ABUSES[name]);
  let socket;
  if (name in HANDLES) {
    const kind = HANDLES[name][0];
    if (kind === 'reset') {
      // Sent first: the other side's end of it comes after that.
      const client = await connected();
      socket = client._handle;
      setTimeout(() => client.other.resetAndDestroy(), 50);
    } else {
      socket = await sockets[kind]();
    }
  }
  channel.writeBuffer(new WriteWrap(), bytes, socket);
  // Then an ordinary message, which not all of this leaves readable.
  setTimeout(() => process.connected && process.send('x', () => {}), 100);
  setTimeout(() => process.exit(0), 10_000);
}

if (cluster.isPrimary) primary();
else if (process.env.SERVE) net.createServer((socket) => socket.end('served')).listen(0, '127.0.0.1');
else worker(process.env.ABUSE);
