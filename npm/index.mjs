import cluster from './index.js';

export default cluster;
export const {
  SCHED_NONE, SCHED_RR, Worker, disconnect, fork, isMaster, isPrimary, isWorker, reload, schedulingPolicy, settings, setupMaster,
  setupPrimary, worker, workers,
} = cluster;
