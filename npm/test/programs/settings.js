'use strict';

// What the settings may be, and what becomes of them.

const cluster = require('node:cluster');
const { plain, report } = require('./report');

if (cluster.isPrimary) {
  report(Object.keys(cluster).filter((name) => !name.startsWith('_')).sort(), cluster.settings, cluster.workers, cluster.worker);
  report(cluster.isMaster, cluster.isPrimary, cluster.isWorker, cluster.SCHED_NONE, cluster.SCHED_RR, cluster.schedulingPolicy);
  report(cluster.setupMaster === cluster.setupPrimary, new cluster.Worker().id, cluster.Worker({ id: '7', state: 'x' }).state);
  const tried = (settings) => {
    try {
      cluster.setupPrimary(settings);
      const worker = cluster.fork({ EXTRA: 'yes', NODE_UNIQUE_ID: '99' });
      return worker;
    } catch (error) {
      report('thrown', plain(error));
      cluster.setupPrimary({ exec: __filename, stdio: undefined, inspectPort: undefined, cwd: undefined, execArgv: [], uid: undefined });
    }
  };
  tried({ exec: 7 });
  tried({ stdio: ['pipe', 'pipe', 'pipe'] });
  tried({ inspectPort: null });
  tried({ inspectPort: 70000, execArgv: ['--inspect'] });
  tried({ uid: 'root' });
  const lost = tried({ cwd: '/nowhere' });
  lost?.on('error', (error) => {
    report('error', plain(error), lost.process.pid, lost.isDead());
    cluster.setupPrimary({ cwd: undefined, args: ['one', 'two'], silent: true });
    const worker = cluster.fork({ EXTRA: 'yes', NODE_UNIQUE_ID: '99' });
    let text = '';
    worker.process.stdout.setEncoding('utf8').on('data', (more) => { text += more; });
    worker.process.on('close', () => {
      report('worker', JSON.parse(text));
      report(Object.keys(cluster.workers));
    });
  });
} else {
  const { EXTRA, NODE_UNIQUE_ID, NODE_CHANNEL_FD } = process.env;
  process.stdout.write(JSON.stringify([process.argv.slice(2), cluster.worker.id, EXTRA, NODE_UNIQUE_ID, NODE_CHANNEL_FD]));
  process.disconnect();
}
