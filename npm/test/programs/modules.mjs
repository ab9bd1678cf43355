// Every way to get hold of `cluster` leads to the same object.

import cluster, { fork, isPrimary, workers } from 'node:cluster';
import * as all from 'cluster';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

const require = createRequire(import.meta.url);
const { report } = require('./report');

if (isPrimary) {
  report(cluster === all.default, cluster === require('cluster'), cluster === require('node:cluster'), fork === cluster.fork, workers === cluster.workers);
  cluster.setupPrimary({ exec: fileURLToPath(import.meta.url) });
  fork().on('message', (message) => report(message)).on('exit', (code) => report('exit', code));
} else {
  process.send(['worker', all.worker.id, isPrimary], () => process.disconnect());
}
