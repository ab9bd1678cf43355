'use strict';

// Loaded into Node workers before their program: when the primary has the worker leave, HTTP/1 connections between two requests move to other
// workers. A moved connection is a descriptor; everything else about it is Node's, and begins there. See docs/design/moving.md.
//
// It is a script of its own, which `troop` and the npm package load with `--require` in `NODE_OPTIONS`. `TROOP_NODE_OPTIONS` is what stood there.

const VARIABLE = 'TROOP_NODE_OPTIONS';
/** The sockets that a program marks with this do not move. */
const STAY = Symbol.for('troop.stay');
/** Connections that no server reads from any more and that the primary does not have yet. */
const MAX_DETACHED = 32;
/** Milliseconds until a connection is offered again that the primary did not take. */
const RETRY_INTERVAL = 10;
/** Milliseconds after which it is served here again. */
const MAX_WAIT = 250;

const { env } = process;
const given = env[VARIABLE];
if (given !== undefined) {
  delete env[VARIABLE];
  if (given) env.NODE_OPTIONS = given.slice(1);
  else delete env.NODE_OPTIONS;
  delete require.cache[__filename];
  // Only the main thread of a worker has that, and no process that it starts.
  if (process.channel) watch();
}

function watch() {
  const cluster = require('cluster');
  const { _getServer: getServer } = cluster;
  if (!cluster.isWorker || typeof getServer !== 'function') return;

  const { send } = process;
  /** The servers whose connections are watched, and the keys of the listeners that each of them has had. */
  const servers = new Map();
  /** Sockets that have been answered on by another worker, and not by this one. */
  const arrived = new WeakSet();
  /** What the worker was told when it was told to leave. */
  let leaving = null;
  /** The key of the listener that the message is about which Node is reading. */
  let key;
  let ownerSymbol;
  let hasWarned = false;

  function warn(text) {
    if (hasWarned) return;
    hasWarned = true;
    process.emitWarning(`connections do not outlive this worker: ${text}`, { type: 'TroopWarning' });
  }

  function tell(act) {
    if (process.connected) send.call(process, { cmd: 'NODE_TROOP', act }, undefined, undefined, () => {});
  }

  // ---- servers ----

  cluster._getServer = function(server, options, callback) {
    return getServer.call(this, server, options, function(...reply) {
      if (!reply[0] && isHttp(server)) learn(server, key);
      return callback.apply(this, reply);
    });
  };

  /** `http` is loaded already where there is such a server. */
  function isHttp(server) {
    return typeof server.closeIdleConnections === 'function' && typeof server.keepAliveTimeout === 'number';
  }

  function learn(server, key) {
    if (servers.size === 0) {
      if (!watchEnd()) return warn("this Node's channel to its primary is of an unknown kind");
      tell('moves');
    }
    const keys = servers.get(server);
    if (keys) keys.add(key);
    else servers.set(server, new Set([key]));
    if (leaving) takeOver(server);
  }

  /** Node's list of a server's connections. */
  function connectionsOf(server) {
    for (const symbol of Object.getOwnPropertySymbols(server)) {
      if (symbol.description === 'http.server.connections') return server[symbol];
    }
  }

  /** The parsers of a server's connections, all or those that are between two requests. */
  function parsersOf(server, which = 'all') {
    const connections = connectionsOf(server);
    if (typeof connections?.[which] === 'function') return connections[which]();
    if (server.listening) warn('this Node has no list of the connections of an http.Server');
    return [];
  }

  // ---- one connection ----

  function isMovable(server, socket) {
    const handle = socket._handle;
    const { parser } = socket;
    if (!leaving.keys.size || socket._server !== server || socket.server !== server || socket[STAY]) return false;
    const kind = handle?.constructor.name;
    if (kind !== 'TCP' && kind !== 'Pipe') return false;
    if (![...servers.get(server)].some((key) => leaving.keys.has(key))) return false;
    return parser?.socket === socket && ['execute', 'unconsume', 'remove'].every((name) => typeof parser[name] === 'function');
  }

  /** Whether nothing of a request has been read and not been answered; `resting` are the parsers that say so. */
  function isIdle(socket, resting) {
    const { parser, _handle: handle } = socket;
    return !socket._httpMessage && !socket.destroyed && !socket.readableEnded && !socket.writableEnded && !socket.isPaused() &&
      socket.readableLength === 0 && socket.writableLength === 0 && handle.writeQueueSize === 0 &&
      // Node's parser does not count one as idle on which nothing has been read.
      (resting.has(parser) || handle.bytesRead === 0);
  }

  /** Takes an idle connection out of its server, which nobody notices before it has moved. */
  function detach(server, socket, resting) {
    if (socket.destroyed || !isMovable(server, socket)) return;
    const { parser, _handle: handle } = socket;
    // From here on nothing is read, so what is idle now stays idle.
    handle.readStop();
    if (!isIdle(socket, resting)) {
      if (handle.reading) handle.readStart();
      return;
    }
    const kept = handle.bytesRead > 0 || arrived.has(socket);
    if (parser._consumed) parser.unconsume();
    parser._consumed = false;
    handle._consumed = false;
    parser.remove();
    socket.setTimeout(0);
    handle.onread = () => {};
    socket._handle = null;
    const key = [...servers.get(server)].find((key) => leaving.keys.has(key));
    return { server, socket, handle, key, kept, until: Date.now() + MAX_WAIT };
  }

  /** Serves a connection here again that nobody else has taken. */
  function putBack({ server, socket: old, handle, kept }) {
    // The program has ended it meanwhile.
    if (old.destroyed) return void handle.close();
    const { Socket } = require('net');
    const socket = new Socket({ handle, allowHalfOpen: server.allowHalfOpen, readable: true, writable: true });
    server._connections++;
    socket.server = server;
    socket._server = server;
    server.emit('connection', socket);
    if (kept) rest(server, socket);
    old.destroy();
    if (!leaving.keys.size && !server.listening) server.closeIdleConnections();
  }

  /** Makes Node's server take a connection for one whose last answer has just ended. */
  function rest(server, socket) {
    const { parser } = socket;
    if (socket.destroyed || typeof parser?.execute !== 'function' || typeof parser.onIncoming !== 'function') return;
    arrived.add(socket);
    // A request that only the parser sees: so it knows that the next one has not begun.
    const { onIncoming } = parser;
    parser.onIncoming = () => 0;
    parser.execute(Buffer.from('GET / HTTP/1.1\r\n\r\n'));
    parser.incoming = null;
    parser.onIncoming = (...request) => {
      parser.onIncoming = onIncoming;
      if (keepAliveTimeout > 0) socket.setTimeout(server.timeout || 0);
      return onIncoming(...request);
    };
    const { keepAliveTimeout, keepAliveTimeoutBuffer = 1000 } = server;
    if (keepAliveTimeout > 0) socket.setTimeout(keepAliveTimeout + keepAliveTimeoutBuffer);
  }

  // ---- moving ----

  /** Those that no server has any more, of which the first one may be under way. */
  const detached = [];
  /** Sockets that may be idle, by their server. */
  let candidates = [];
  let underWay = null;
  let isScheduled = false;

  function enqueue(server, socket) {
    if (socket.destroyed) return;
    candidates.push([server, socket]);
    if (isScheduled) return;
    isScheduled = true;
    // Not while a parser runs, and not before what else has come from the primary is known.
    setImmediate(pump);
  }

  function pump() {
    isScheduled = false;
    // A list of those that rest costs more than one connection.
    if (candidates.length > 0 && detached.length <= MAX_DETACHED / 2 && process.connected) {
      const resting = new Map();
      while (candidates.length > 0 && detached.length < MAX_DETACHED) {
        const [server, socket] = candidates.pop();
        if (!resting.has(server)) resting.set(server, new Set(parsersOf(server, 'idle')));
        const entry = detach(server, socket, resting.get(server));
        if (entry) detached.push(entry);
      }
    }
    if (!underWay && detached.length > 0) sendNext();
    if (detached.length === 0 && candidates.length === 0 && leaving.isScanned && !leaving.hasMoved) {
      leaving.hasMoved = true;
      tell('moved');
    }
  }

  function sendNext() {
    const entry = detached[0];
    const { key, kept, handle } = entry;
    if (!process.connected || !leaving.keys.has(key)) {
      detached.shift();
      putBack(entry);
      return pump();
    }
    underWay = entry;
    // Behind the sockets that the program sends. From this callback on the next confirmation is ours.
    send.call(process, { cmd: 'NODE_TROOP', act: 'move', key, kept }, handle, undefined, (error) => {
      if (error) settled(entry, false);
      else entry.isWritten = true;
    });
  }

  function settled(entry, hasArrived) {
    underWay = null;
    entry.isWritten = false;
    if (hasArrived) {
      detached.shift();
      entry.handle.close();
      entry.socket.destroy();
    } else if (Date.now() < entry.until && leaving.keys.has(entry.key) && process.connected) {
      // Too many wait there.
      setTimeout(() => { if (!underWay && detached[0] === entry) sendNext(); }, RETRY_INTERVAL);
      return;
    } else {
      detached.shift();
      putBack(entry);
    }
    pump();
  }

  // ---- leaving ----

  /** Closes one that cannot move, at some moment of the time for that, or after its next answer. */
  function end(server, socket) {
    if (leaving.spread === 0) return void socket.destroy();
    if (leaving.ending.has(socket)) return;
    leaving.ending.add(socket);
    setTimeout(() => {
      leaving.ending.delete(socket);
      if (!socket._httpMessage && parsersOf(server, 'idle').includes(socket.parser)) socket.destroy();
    }, Math.random() * leaving.spread);
  }

  /** What Node does when a server is closed, from when the worker leaves. */
  function takeOver(server) {
    Object.defineProperty(server, 'closeIdleConnections', {
      value: function closeIdleConnections() {
        for (const { socket } of parsersOf(server)) {
          if (socket && isMovable(server, socket)) enqueue(server, socket);
        }
        for (const { socket } of parsersOf(server, 'idle')) {
          if (!isMovable(server, socket) && (!socket._httpMessage || socket._httpMessage.finished)) end(server, socket);
        }
      },
      writable: true,
      configurable: true,
      enumerable: false,
    });
  }

  function leave({ keys, spread }) {
    const isFirst = !leaving;
    leaving = { ending: new WeakSet(), hasMoved: false, ...leaving, keys: new Set(keys), spread };
    if (isFirst) begin();
    for (const server of servers.keys()) {
      // From now on each answer on one that cannot move is its last.
      for (const { socket } of parsersOf(server)) {
        if (!socket) continue;
        if (isMovable(server, socket)) enqueue(server, socket);
        else if (socket._httpMessage) announceEnd(socket._httpMessage);
      }
      if (!server.listening) server.closeIdleConnections();
    }
    leaving.isScanned = true;
    if (!isScheduled) pump();
  }

  function announceEnd(response) {
    if (!response.headersSent) response.shouldKeepAlive = false;
  }

  function begin() {
    const { subscribe } = require('diagnostics_channel');
    for (const server of servers.keys()) takeOver(server);
    subscribe('http.server.request.start', ({ server, socket, response }) => {
      if (servers.has(server) && !isMovable(server, socket)) announceEnd(response);
    });
    subscribe('http.server.response.finish', ({ server, socket }) => {
      if (servers.has(server)) enqueue(server, socket);
    });
    // Those that become idle without an answer, and those that nobody has taken.
    setInterval(() => {
      for (const server of servers.keys()) {
        for (const { socket } of parsersOf(server, 'idle')) if (isMovable(server, socket)) enqueue(server, socket);
      }
    }, MAX_WAIT).unref();
    process.once('disconnect', () => {
      const entries = detached.splice(0);
      // Nobody knows who has the one that is under way.
      if (underWay && entries[0] === underWay) {
        const { handle, socket } = entries.shift();
        handle.close();
        socket.destroy();
      }
      underWay = null;
      entries.forEach(putBack);
    });
  }

  // ---- the channel ----

  /** Node does not say that the channel has ended, and the process goes on, while a sent socket is not confirmed. */
  function watchEnd() {
    const symbol = Object.getOwnPropertySymbols(process).find(({ description }) => description === 'kChannelHandle');
    const channel = process[symbol];
    if (typeof channel?.onread !== 'function') return false;
    const { onread } = channel;
    channel.onread = function(chunk) {
      onread.call(this, chunk);
      if (chunk || !underWay || !process._handleQueue) return;
      process._handleQueue = null;
      process.nextTick(() => process.emit('disconnect'));
    };
    return true;
  }

  process.prependListener('internalMessage', (message) => {
    key = message.key;
    const { cmd, act } = message;
    if (cmd === 'NODE_TROOP') {
      if (act === 'leave') leave(message);
    } else if (underWay?.isWritten && (cmd === 'NODE_HANDLE_ACK' || cmd === 'NODE_HANDLE_NACK')) {
      settled(underWay, cmd === 'NODE_HANDLE_ACK');
    }
  });

  // After Node's own.
  process.on('internalMessage', ({ act, kept }, handle) => {
    if (act !== 'newconn' || !kept || !handle) return;
    ownerSymbol ??= Object.getOwnPropertySymbols(handle).find(({ description }) => description === 'owner_symbol');
    const socket = handle[ownerSymbol];
    const server = socket?._server;
    if (server && servers.has(server)) rest(server, socket);
  });
}
