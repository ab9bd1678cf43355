/// <reference types="node" />

import type nodeCluster from 'node:cluster';

type NodeCluster = typeof nodeCluster;

declare namespace troop {
  /**
   * Who gets the next connection, by the names that `troop run --policy` has: see `docs/scheduling.md`.
   *
   * - `round-robin`: exact turns among ready workers (Node's `SCHED_RR`, the default);
   * - `shared`: all workers accept on one socket (Node's `SCHED_NONE`);
   * - `steered`: the kernel chooses, by weight and load, at no cost for the primary;
   * - `least-connections`, `p2c`: by connections open at the worker;
   * - `sticky`, `steered:sticky`: by client;
   * - `weighted`: turns in proportion to weights.
   */
  type Scheduling =
    | 'round-robin' | 'shared' | 'steered' | 'least-connections' | 'p2c' | 'weighted' | 'sticky' | 'steered:sticky'
    | `sticky:${string}` | `steered:sticky:${string}`;

  /** Node's `cluster`, with more to choose from. */
  interface Cluster extends Omit<NodeCluster, 'schedulingPolicy'> {
    /** `SCHED_RR`, `SCHED_NONE` or a name; to be set before the first `setupPrimary` or `fork`. */
    schedulingPolicy: number | Scheduling;
  }
}

declare const troop: troop.Cluster;
export = troop;
