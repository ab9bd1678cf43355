'use strict';

// Loaded into Node workers before their program. When the worker drains, its idle HTTP/1 connections (those between two requests) move to other
// workers; so do some of them when it has more than its share. Only the descriptor moves; the other worker makes a new socket of it. See
// docs/design/moving.md. It also tells the primary which servers limit their connections (docs/design/steering.md).
//
// `troop` and the npm package load this script with `--require` in `NODE_OPTIONS`. `TROOP_NODE_OPTIONS` has the original value.

const VARIABLE = 'TROOP_NODE_OPTIONS';
/** Set for programs that end by themselves and are not started again. */
const FINITE = 'TROOP_FINITE';
/** Programs mark sockets with this property to keep them from moving. */
const STAY = Symbol.for('troop.stay');
/** A program's mark on a server whose connections may move although the program has listeners of its own for them. */
const MOVE = Symbol.for('troop.move');
/** Maximum number of connections that are detached from their server and not moved yet. */
const MAX_DETACHED = 32;
/** Milliseconds until a connection that the primary rejected is offered again. */
const RETRY_INTERVAL = 10;
/** Milliseconds within which connections move that the primary has asked for although the worker stays. */
const SHARE_TIMEOUT = 1000;
/** Milliseconds in which a new connection may send its first request to a worker that no other one follows. */
const MAX_SILENCE = 1000;
/** Milliseconds between two checks whether requests are answered. */
const CHECK_INTERVAL = 20;
/** Milliseconds within which handlers of a signal begin. */
const MAX_SIGNAL_TIME = 100;
/** Milliseconds after which a connection that could not move is served here again. */
const MAX_WAIT = 250;
/** Maximum of the milliseconds in which only answers end connections that cannot move. */
const MAX_ANNOUNCEMENT = 1000;

const { env } = process;
const given = env[VARIABLE];
// Threads load it too.
delete require.cache[__filename];
if (given !== undefined) {
  delete env[VARIABLE];
  if (given) env.NODE_OPTIONS = given.slice(1);
  else delete env.NODE_OPTIONS;
  const isFinite = FINITE in env;
  delete env[FINITE];
  // Only the main thread of a worker has a channel; its children and threads have none.
  if (process.channel) {
    if (isFinite) endWithProgram(process.channel);
    watch();
  }
}

/** Lets the process end when its program has nothing left to do, as without a channel, which Node keeps open in each worker. */
function endWithProgram(channel) {
  const cluster = require('cluster');
  const { _getServer: getServer } = cluster;
  if (typeof channel.unrefCounted !== 'function' || typeof getServer !== 'function') return;
  // Those of Node's own listeners; each of the program's keeps the process.
  const own = process.listenerCount('disconnect') + process.listenerCount('message');
  for (let count = 0; count < own; count++) channel.unrefCounted();
  cluster._getServer = function(server, ...rest) {
    channel.refCounted();
    server.once?.('close', () => channel.unrefCounted());
    return getServer.call(this, server, ...rest);
  };
}

function watch() {
  const cluster = require('cluster');
  const { _getServer: getServer } = cluster;
  if (!cluster.isWorker || typeof getServer !== 'function') return;

  const { send } = process;
  /** The watched servers, each with the keys of its listeners so far. */
  const servers = new Map();
  /** Servers that are not of `http`. */
  const others = new Set();
  /** Servers whose `closeIdleConnections` the program has fixed: Node closes their idle connections, which do not move. */
  const fixed = new WeakSet();
  /** Sockets that came from another worker after a request, and have had no request here. */
  const arrived = new WeakSet();
  /** The state of draining: `null` before the primary requests it. */
  let leaving = null;
  /** The connections that the primary has asked for although the worker stays: `null` if there are none. */
  let sharing = null;
  /** The key of the listener in the message that Node is handling. */
  let key;
  let ownerSymbol;
  let hasWarned = false;

  function warn(text) {
    if (hasWarned) return;
    hasWarned = true;
    process.emitWarning(`connections do not outlive this worker: ${text}`, { type: 'TroopWarning' });
  }

  /** Has exceptions of this script, which properties that the program has fixed may cause, not end the program. */
  function guarded(run) {
    return function(...args) {
      try {
        return run.apply(this, args);
      } catch (error) {
        warn(`${error?.message ?? error}`);
      }
    };
  }

  /** Calls a function of the program's; its exceptions are the program's. */
  function callProgram(run) {
    try { run(); } catch (error) { process.nextTick(() => { throw error; }); }
  }

  /** Puts a function in the place of one of a server's, and returns whether the program allows it. */
  function override(server, name, value) {
    return Reflect.defineProperty(server, name, { value, writable: true, configurable: true, enumerable: false });
  }

  function tell(act, fields) {
    if (process.connected) send.call(process, { cmd: 'NODE_TROOP', act, ...fields }, undefined, undefined, () => {});
  }

  // ---- servers ----

  cluster._getServer = function(server, options, callback) {
    return getServer.call(this, server, options, function(...reply) {
      if (!reply[0]) {
        guarded(() => isHttp(server) ? learn(server, key) : others.add(server))();
        guarded(watchLimit)(server, key);
      }
      return callback.apply(this, reply);
    });
  };

  /** Whether a server is one of `http`, without loading that module. */
  function isHttp(server) {
    return typeof server.closeIdleConnections === 'function' && typeof server.keepAliveTimeout === 'number';
  }

  /**
   * Tells the primary when a server limits its connections. Of those that the primary hands over, others get the ones that this server
   * rejects; those that it accepts by itself it would close.
   */
  function watchLimit(server, key) {
    const name = 'maxConnections';
    if (typeof server.getConnections !== 'function') return;
    if (Number.isFinite(server[name])) return tell('limited', { key });
    if (Object.getOwnPropertyDescriptor(server, name)?.configurable === false || !Object.isExtensible(server)) return;
    const { value, enumerable = true } = Object.getOwnPropertyDescriptor(server, name) ?? {};
    const hadName = Object.hasOwn(server, name);
    Object.defineProperty(server, name, {
      get: () => value,
      set(limit) {
        Object.defineProperty(server, name, { value: limit, enumerable, writable: true, configurable: true });
        if (Number.isFinite(limit)) tell('limited', { key });
        else watchLimit(server, key);
      },
      enumerable: hadName && enumerable,
      configurable: true,
    });
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

  /** Returns Node's list of a server's connections. */
  function connectionsOf(server) {
    for (const symbol of Object.getOwnPropertySymbols(server)) {
      if (symbol.description === 'http.server.connections') return server[symbol];
    }
  }

  /** Returns the parsers of a server's connections: all, or those of idle ones. */
  function parsersOf(server, which = 'all') {
    const connections = connectionsOf(server);
    if (typeof connections?.[which] === 'function') return connections[which]();
    if (server.listening) warn('this Node has no list of the connections of an http.Server');
    return [];
  }

  /** Node's own listener for the connections of an http.Server. */
  let ownListener;
  /** The properties of a connection that Node sets. */
  let ownKeys;

  /** Whether nothing but Node keeps something for each connection of a server. A listener of the program's would be called again. */
  function isPlain(server) {
    if (server[MOVE]) return true;
    const listeners = server.listeners('connection');
    ownListener ??= require('http').createServer().listeners('connection')[0];
    return listeners.length === 1 && listeners[0] === ownListener;
  }

  /** Whether the program keeps something on a connection, such as who its client is. */
  function hasState(socket) {
    ownKeys ??= new Set([...Object.keys(new (require('net').Socket)()), 'addListener', 'on', 'parser', 'prependListener', 'setEncoding', 'timeout']);
    return Object.keys(socket).some((key) => !ownKeys.has(key) && !key.startsWith('_'));
  }

  // ---- one connection ----

  /** Returns the keys of the listeners whose connections the primary takes now. */
  function takenKeys() {
    return (leaving ?? sharing)?.keys ?? new Set();
  }

  function isMovable(server, socket) {
    const handle = socket._handle;
    const { parser } = socket;
    const taken = takenKeys();
    if (!taken.size || fixed.has(server) || socket._server !== server || socket.server !== server || socket[STAY]) return false;
    if (!isPlain(server) || hasState(socket)) return false;
    const kind = handle?.constructor.name;
    if (kind !== 'TCP' && kind !== 'Pipe') return false;
    if (![...servers.get(server)].some((key) => taken.has(key))) return false;
    return parser?.socket === socket && ['execute', 'unconsume', 'remove'].every((name) => typeof parser[name] === 'function');
  }

  /** Whether no request is partly read or unanswered; `resting` are the parsers that Node lists as idle. */
  function isIdle(socket, resting) {
    const { parser, _handle: handle } = socket;
    return !socket._httpMessage && !socket.destroyed && !socket.readableEnded && !socket.writableEnded && !socket.isPaused() &&
      socket.readableLength === 0 && socket.writableLength === 0 && handle.writeQueueSize === 0 &&
      // Node does not list a connection as idle before anything has been read from it.
      (resting.has(parser) || handle.bytesRead === 0);
  }

  /** Detaches an idle connection from its server. No event is emitted before it has moved. */
  function detach(server, socket, resting) {
    if (socket.destroyed || !isMovable(server, socket) || (!leaving && !isWanted(socket))) return;
    const { parser, _handle: handle } = socket;
    // Nothing is read from here on, so an idle connection stays idle.
    handle.readStop();
    if (!isIdle(socket, resting)) return void (handle.reading && handle.readStart());
    // Whoever serves it begins to read, also where nobody takes it.
    handle.reading = false;
    const kept = handle.bytesRead > 0 || arrived.has(socket);
    if (parser._consumed) parser.unconsume();
    parser._consumed = false;
    handle._consumed = false;
    parser.remove();
    socket.setTimeout(0);
    handle.onread = () => {};
    socket._handle = null;
    const key = [...servers.get(server)].find((key) => takenKeys().has(key));
    sharing?.wanted.delete(socket);
    return { server, socket, handle, key, kept, until: Date.now() + MAX_WAIT };
  }

  /** Serves a connection here again that no other worker has taken. */
  function putBack({ server, socket: old, handle, kept }) {
    // The program has destroyed it meanwhile.
    if (old.destroyed) return void handle.close();
    const { Socket } = require('net');
    const socket = new Socket({ handle, allowHalfOpen: server.allowHalfOpen, readable: true, writable: true });
    server._connections++;
    socket.server = server;
    socket._server = server;
    callProgram(() => server.emit('connection', socket));
    if (kept) rest(server, socket);
    old.destroy();
    if (!takenKeys().size && !server.listening) callProgram(() => server.closeIdleConnections());
  }

  /** Puts a new connection into the state after an answer, so that Node's server treats it as kept alive. */
  function rest(server, socket) {
    const { parser } = socket;
    if (socket.destroyed || typeof parser?.execute !== 'function' || typeof parser.onIncoming !== 'function') return;
    arrived.add(socket);
    // Feeds the parser a complete request, which the server does not see, so that it waits for the next one.
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

  /** Detached connections; the first one may be in flight. */
  const detached = [];
  /** Pairs of a server and a socket that may be idle. */
  let candidates = [];
  let underWay = null;
  let isScheduled = false;

  function enqueue(server, socket) {
    if (socket.destroyed) return;
    candidates.push([server, socket]);
    if (isScheduled) return;
    isScheduled = true;
    // Not while a parser runs, and after the other messages of the primary that have arrived.
    setImmediate(guarded(pump));
  }

  function pump() {
    isScheduled = false;
    // Getting the list of idle parsers costs more than handling one connection, so it is used for several.
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
    if (detached.length === 0 && candidates.length === 0 && leaving?.isScanned && !leaving.hasMoved) {
      leaving.hasMoved = true;
      tell('moved');
    }
  }

  function sendNext() {
    const entry = detached[0];
    const { key, kept, handle } = entry;
    if (!process.connected || !takenKeys().has(key)) {
      detached.shift();
      putBack(entry);
      return pump();
    }
    underWay = entry;
    // Queued behind sockets that the program sends. After this callback the next acknowledgement belongs to this connection.
    send.call(process, { cmd: 'NODE_TROOP', act: 'move', key, kept }, handle, undefined, guarded((error) => {
      if (error) settled(entry, false);
      else entry.isWritten = true;
    }));
  }

  function settled(entry, hasArrived) {
    underWay = null;
    entry.isWritten = false;
    if (hasArrived) {
      detached.shift();
      entry.handle.close();
      entry.socket.destroy();
    } else if (Date.now() < entry.until && leaving?.keys.has(entry.key) && process.connected) {
      // The primary has too many waiting connections.
      setTimeout(guarded(() => { if (!underWay && detached[0] === entry) sendNext(); }), RETRY_INTERVAL);
      return;
    } else {
      detached.shift();
      putBack(entry);
    }
    pump();
  }

  // ---- leaving ----

  /**
   * Closes a connection that cannot move at a random moment within `spread`, or after its next answer. The first moments are left out, so that
   * a client which sends requests often gets an answer that announces the end.
   */
  function end(server, socket) {
    const { spread } = leaving;
    if (spread === 0) return void socket.destroy();
    if (leaving.ending.has(socket)) return;
    leaving.ending.add(socket);
    const first = Math.min(spread / 4, MAX_ANNOUNCEMENT);
    setTimeout(() => {
      // What has arrived is read before.
      setImmediate(guarded(() => {
        leaving.ending.delete(socket);
        if (!socket._httpMessage && parsersOf(server, 'idle').includes(socket.parser)) socket.destroy();
      }));
    }, first + Math.random() * (spread - first));
  }

  /** Replaces `closeIdleConnections`, which Node calls when a server closes, while the worker drains. */
  function takeOver(server) {
    const isAllowed = override(server, 'closeIdleConnections', guarded(() => {
      for (const { socket } of parsersOf(server)) {
        if (socket && isMovable(server, socket)) enqueue(server, socket);
      }
      for (const { socket } of parsersOf(server, 'idle')) {
        if (!isMovable(server, socket) && (!socket._httpMessage || socket._httpMessage.finished)) end(server, socket);
      }
    }));
    if (!isAllowed && fixed.add(server)) warn('the program has fixed closeIdleConnections of a server');
  }

  function leave({ keys, spread }) {
    const isFirst = !leaving;
    leaving = { ending: new WeakSet(), hasMoved: false, ...leaving, keys: new Set(keys), spread };
    if (isFirst) begin();
    for (const server of servers.keys()) {
      // The next answer on a connection that cannot move is its last.
      for (const { socket } of parsersOf(server)) {
        if (!socket) continue;
        if (isMovable(server, socket)) enqueue(server, socket);
        else if (socket._httpMessage) announceEnd(socket._httpMessage);
      }
      if (!server.listening) callProgram(() => server.closeIdleConnections());
    }
    leaving.isScanned = true;
    if (!isScheduled) pump();
  }

  /** Moves some connections of a listener, idle ones first, while the worker goes on. */
  function share(key, count) {
    if (leaving || !(count > 0)) return;
    observe();
    sharing ??= { keys: new Set(), wanted: new WeakMap() };
    sharing.keys.add(key);
    const idle = [];
    const busy = [];
    for (const [server, keys] of servers) {
      if (!keys.has(key)) continue;
      const resting = new Set(parsersOf(server, 'idle'));
      for (const { socket } of parsersOf(server)) {
        if (socket && isMovable(server, socket)) (isIdle(socket, resting) ? idle : busy).push([server, socket]);
      }
    }
    for (const [server, socket] of idle.concat(busy).slice(0, count)) {
      sharing.wanted.set(socket, Date.now() + SHARE_TIMEOUT);
      enqueue(server, socket);
    }
  }

  /** Whether the primary has asked for a connection just now. */
  function isWanted(socket) {
    return Date.now() < (sharing?.wanted.get(socket) ?? 0);
  }

  /** Returns the number of a listener's connections. */
  function count(key) {
    let open = 0;
    for (const [server, keys] of servers) if (keys.has(key)) open += parsersOf(server).length;
    return open;
  }

  let isObserved = false;

  /** Moves connections after their answers. */
  function observe() {
    if (isObserved) return;
    isObserved = true;
    require('diagnostics_channel').subscribe('http.server.response.finish', guarded(({ server, socket }) => {
      if (servers.has(server) && (leaving || isWanted(socket))) enqueue(server, socket);
    }));
    process.once('disconnect', guarded(() => {
      const entries = detached.splice(0);
      // The owner of the connection in flight is unknown.
      if (underWay && entries[0] === underWay) {
        const { handle, socket } = entries.shift();
        handle.close();
        socket.destroy();
      }
      underWay = null;
      entries.forEach(putBack);
    }));
  }

  function announceEnd(response) {
    if (!response.headersSent) response.shouldKeepAlive = false;
  }

  function begin() {
    const { subscribe } = require('diagnostics_channel');
    for (const server of servers.keys()) takeOver(server);
    subscribe('http.server.request.start', guarded(({ server, socket, response }) => {
      if (servers.has(server) && !isMovable(server, socket)) announceEnd(response);
    }));
    observe();
    // Finds connections that become idle without an answer, and those that no worker has taken.
    setInterval(guarded(() => {
      for (const server of servers.keys()) {
        for (const { socket } of parsersOf(server, 'idle')) if (isMovable(server, socket)) enqueue(server, socket);
      }
    }), MAX_WAIT).unref();
  }

  // ---- the stop signal ----

  /** Returns the name of a signal if the program has a handler for it, so that it does not end it at once. */
  function handled(number) {
    const { constants: { signals } } = require('os');
    // Listeners of the package signal-exit, which end the process unless there are others.
    const ending = [process.__signal_exit_emitter__, globalThis[Symbol.for('signal-exit emitter')]]
      .reduce((count, emitter) => count + (Number(emitter?.count) || 0), 0);
    return process.eventNames().find((name) => Object.hasOwn(signals, name) && signals[name] === number && process.listenerCount(name) > ending);
  }

  /**
   * Whether something is unanswered, or a connection that cannot move is still to end. Of servers that are not of `http` nobody knows it, so each
   * of their connections counts.
   */
  function isBusy() {
    for (const server of others) if (server._connections > 0) return true;
    for (const server of servers.keys()) {
      const idle = leaving?.spread > 0 ? new Set() : new Set(parsersOf(server, 'idle'));
      for (const { socket } of parsersOf(server)) {
        if (socket && !socket.destroyed && (socket._httpMessage || (socket.bytesRead > 0 && !idle.has(socket.parser)))) return true;
      }
    }
    return false;
  }

  /** Has a server that Node closes for the disconnect call back when the program closes it too, instead of reporting that it is closed. */
  function allowClose(server) {
    const own = Object.getOwnPropertyDescriptor(server, 'close');
    const { close } = server;
    if (typeof close !== 'function') return;
    let isEnded = false;
    // Where the program has fixed it, its callback gets Node's error.
    const isAllowed = override(server, 'close', (callback) => {
      if (server.listening) return close.call(server, callback);
      Reflect.deleteProperty(server, 'close');
      if (own) Reflect.defineProperty(server, 'close', own);
      if (typeof callback === 'function') {
        if (isEnded) process.nextTick(callback);
        else server.once('close', callback);
      }
      server.closeIdleConnections?.();
      return server;
    });
    if (isAllowed) server.once('close', () => { isEnded = true; });
  }

  /** Sends this process its stop signal when requests are answered and idle connections have ended, if the program has a handler for it. */
  function stop(number, within) {
    // Many programs handle only one of SIGINT, which PM2 and terminals send, and SIGTERM.
    const name = handled(number) ?? handled({ 2: 15, 15: 2 }[number]);
    if (!name) return;
    tell('raises');
    for (const server of [...servers.keys(), ...others]) guarded(allowClose)(server);
    if (leaving?.spread > 0) {
      // What cannot move ends before, after an answer that announces it where one comes.
      leaving.spread = Math.min(leaving.spread, within * 0.9);
      leaving.ending = new WeakSet();
    }
    const until = Date.now() + within;
    // The timers keep the process, so that handlers run even if nothing else does.
    const timer = setInterval(() => {
      if (Date.now() < until && guarded(isBusy)()) return;
      clearInterval(timer);
      process.kill(process.pid, name);
      setTimeout(() => {}, MAX_SIGNAL_TIME);
    }, CHECK_INTERVAL);
  }

  /** Ends connections that never had a request, and would keep the process although no worker takes them. */
  function endSilent() {
    for (const server of servers.keys()) {
      for (const { socket } of parsersOf(server)) if (socket?.bytesRead === 0 && !socket._httpMessage && !arrived.has(socket)) socket.destroy();
    }
  }

  // ---- the channel ----

  /** Emits 'disconnect' at the end of the channel while a sent socket is unacknowledged; Node does not, and the process would go on. */
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

  process.prependListener('internalMessage', guarded((message) => {
    key = message.key;
    const { cmd, act } = message;
    if (cmd === 'NODE_TROOP') {
      if (act === 'leave') leave(message);
      else if (act === 'count') tell('counted', { key, open: count(key) });
      else if (act === 'rebalance') share(key, message.count);
    } else if (cmd === 'NODE_CLUSTER' && act === 'disconnect' && message.stopSignal) {
      stop(message.stopSignal, message.stopWithin);
      setTimeout(guarded(endSilent), Math.max(leaving?.spread ?? 0, MAX_SILENCE)).unref();
    } else if (underWay?.isWritten && (cmd === 'NODE_HANDLE_ACK' || cmd === 'NODE_HANDLE_NACK')) {
      settled(underWay, cmd === 'NODE_HANDLE_ACK');
    }
  }));

  // Called after Node's listener.
  process.on('internalMessage', guarded(({ act, kept }, handle) => {
    if (act !== 'newconn' || !kept || !handle) return;
    ownerSymbol ??= Object.getOwnPropertySymbols(handle).find(({ description }) => description === 'owner_symbol');
    const socket = handle[ownerSymbol];
    const server = socket?._server;
    if (server && servers.has(server)) rest(server, socket);
  }));
}
