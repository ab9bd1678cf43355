import cluster = require('@troop/cluster');

cluster.schedulingPolicy = cluster.SCHED_RR;
cluster.schedulingPolicy = 'steered';
cluster.schedulingPolicy = 'sticky:prefix=24';
cluster.schedulingPolicy = ({ remoteAddress }, candidates) => candidates.find(({ worker, ready }) => ready && worker.id > 1 && remoteAddress !== undefined);
cluster.schedulingPolicy = (_, [first]) => first?.worker;
// @ts-expect-error: there is no such policy
cluster.schedulingPolicy = 'sideways';
cluster.setupPrimary({ exec: 'x.js', respawn: { restarts: 3, within: 1000 } });
// @ts-expect-error: a typing error in an option
cluster.setupPrimary({ respawn: { restart: 3 } });
const worker = cluster.fork({ A: '1' });
worker.on('listening', (address) => address.port);
const taken: number | undefined = worker.counters()?.taken;
cluster.on('exit', (worker, code, signal) => console.log(worker.id, code, signal, taken));
cluster.on('respawnLimit', (worker, { restarts }) => console.log(worker.counters(), restarts));
cluster.reload({ ready: 'message', surge: 1 }).then(({ replaced }) => replaced + 1);
// @ts-expect-error: never ready
cluster.reload({ ready: 'never' });
for (const each of Object.values(cluster.workers ?? {})) each?.send({ hello: each.process.pid });
cluster.disconnect(() => {});
