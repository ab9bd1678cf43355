
// Appended to moves.js by `troop`. Tells the primary, once, that the program asks whether it is the primary of a cluster before it listens, so that
// it probably has a part for one, which no worker runs. Packages ask for reasons of their own (loggers do): of one it is told if nothing listens,
// unless clustering is what it is for.
if (given !== undefined && process.channel) watchPrimaryPart();

function watchPrimaryPart() {
  const cluster = require('cluster');
  if (!cluster.isWorker) return;
  const { send } = process;
  const { _getServer: getServer } = cluster;
  // Packages that are the primary for a program.
  const clusterers = /[\\/]node_modules[\\/](throng|recluster|cluster-service|cluster-master|sticky-session|sticky-cluster|express-cluster|cfork)[\\/]/;
  let isOver = false;
  let byPackage;

  /** Returns the place that reads a property, if it is not in Node. */
  function reader() {
    const { stack } = new Error();
    const frames = typeof stack === 'string' ? stack.split('\n').slice(4) : [];
    // An import of the module as ESM reads all properties, by a frame without a place and then by Node.
    const frame = frames.find(frame => !/<anonymous>\)?$/.test(frame));
    return frame && !/\bnode:/.test(frame) ? frame.trim().replace(/^at /, '') : undefined;
  }

  function noteRead(name) {
    if (isOver) return;
    const at = reader();
    if (!at) return;
    if (!/[\\/]node_modules[\\/]/.test(at) || clusterers.test(at)) return tell({ name, at });
    if (!byPackage) setTimeout(() => isOver || tell({ name, at, package: true }), 2000).unref();
    byPackage = true;
  }

  function tell(notice) {
    isOver = true;
    if (process.connected) send.call(process, { troop: 'primary-part', ...notice }, undefined, undefined, () => {});
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
