// A Fastify app under `throng`, which forks and looks after the workers.

import cluster from 'node:cluster';
import Fastify from 'fastify';
import throng from 'throng';
import { createRequire } from 'node:module';

const { report } = createRequire(import.meta.url)('../programs/report');

await throng({
  count: 2,
  lifetime: 0,
  signals: ['SIGTERM'],
  async master() {
    let listening = 0;
    cluster.on('listening', async (worker, { port }) => {
      if (++listening < 2) return;
      const seen = new Set();
      for (let n = 0; n < 10; n++) {
        const response = await fetch(`http://127.0.0.1:${port}/`, { headers: { connection: 'close' } });
        seen.add((await response.json()).worker);
      }
      report([...seen].sort());
      process.kill(process.pid, 'SIGTERM');
    });
  },
  async worker(id, disconnect) {
    const app = Fastify({ forceCloseConnections: true });
    app.get('/', async () => ({ worker: cluster.worker.id }));
    await app.listen({ port: 0, host: '127.0.0.1' });
    process.once('SIGTERM', async () => {
      await app.close();
      disconnect();
    });
  },
});
