
// Appended to moves.js by `troop`. Tells the primary, once, that the program asks whether it is the primary of a cluster before it listens, so that
// it probably has a part for one, which no worker runs.
if (given !== undefined && process.channel) watchPrimaryPart();

function watchPrimaryPart() {
  const cluster = require('cluster');
  if (!cluster.isWorker) return;
  const { send } = process;
  const { _getServer: getServer } = cluster;
  let isOver = false;

  /** Returns the place in the program that reads a property, if it is not in Node or a package. */
  function reader() {
    const { stack } = new Error();
    const frames = typeof stack === 'string' ? stack.split('\n').slice(4) : [];
    // An import of the module as ESM reads all properties, by a frame without a place and then by Node.
    const frame = frames.find(frame => !/<anonymous>\)?$/.test(frame));
    return frame && !/\bnode:|[\\/]node_modules[\\/]/.test(frame) ? frame.trim().replace(/^at /, '') : undefined;
  }

  function noteRead(name) {
    if (isOver) return;
    const at = reader();
    if (!at) return;
    isOver = true;
    if (process.connected) send.call(process, { troop: 'primary-part', name, at }, undefined, undefined, () => {});
  }

  for (const name of ['isPrimary', 'isMaster', 'isWorker', 'fork']) {
    const value = cluster[name];
    const enumerable = name in cluster;
    Object.defineProperty(cluster, name, {
      get() {
        noteRead(name);
        return value;
      },
      set(other) {
        Object.defineProperty(cluster, name, { value: other, writable: true, enumerable: true, configurable: true });
      },
      enumerable,
      configurable: true,
    });
  }
  cluster._getServer = function(...args) {
    isOver = true;
    return getServer.apply(this, args);
  };
}
