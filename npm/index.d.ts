/// <reference types="node" />

import type nodeCluster from 'node:cluster';
import type { Address, ClusterSettings as NodeSettings, Worker as NodeWorker } from 'node:cluster';

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

  /** A connection that a worker is wanted for. */
  interface Connection {
    /** The client's address; missing on Unix sockets. */
    remoteAddress?: string;
    remotePort?: number;
    remoteFamily?: 'IPv4' | 'IPv6';
    /** The listener's address, or its path. */
    localAddress?: string;
    localPort?: number;
  }

  /** A worker that takes part in a listener. */
  interface Candidate {
    worker: Worker;
    /** Whether it would take a connection at once. One that is chosen and is not ready makes the connection wait for it. */
    ready: boolean;
    /** Connections open there: an estimate from its descriptors. */
    open: number;
    /** Connections that it was given and has not answered. */
    pending: number;
    /** Its part of the connections, usually 100. */
    weight: number;
  }

  /**
   * Chooses a worker. Called on the JavaScript thread for each connection, which waits for it up to a second; without an answer, or if the
   * function throws, it is the next worker's turn.
   */
  type Chooser = (connection: Connection, candidates: Candidate[]) => Worker | Candidate | null | undefined | void;

  /** Counters of one worker. With `shared` and `steered`, workers accept by themselves, and there is nothing to count. */
  interface Counters {
    /** Connections that the primary handed over. */
    handed: number;
    /** Those that the worker took. */
    taken: number;
    /** Those that it gave back. */
    returned: number;
    /** Those that it has not answered yet. */
    inFlight: number;
    /** Connections open there: an estimate from its descriptors. */
    open: number;
    /** Small breaches of the channel's rules. */
    violations: number;
  }

  interface Worker extends NodeWorker {
    /** Its counters now; after its end, as of its disconnect. `undefined` if its process could not be started. */
    counters(): Counters | undefined;
  }

  /** How workers that die come back. A worker that was told to leave does not. Each worker and its successors have pauses of their own. */
  interface Respawn {
    /** Milliseconds before a worker follows one that died young; doubled for each further one, less up to a quarter. Default: 100. */
    delay?: number;
    /** The longest such pause. Default: 30,000. */
    maxDelay?: number;
    /** A worker that was ready for so many milliseconds does not count as one that died young. Default: 1,000. */
    minUptime?: number;
    /** As long as no worker was ever ready: after so many restarts... Default: 8, or 4 for each worker. */
    restarts?: number;
    /** ...within so many milliseconds, there are no more, and `respawnLimit` is emitted. Default: 60,000. */
    within?: number;
  }

  interface ClusterSettings extends NodeSettings {
    /**
     * Whether workers that die are forked again, with the same environment. Their listeners stay open meanwhile, and are closed when the new ones
     * listen elsewhere. Default: false.
     */
    respawn?: boolean | Respawn;
    /**
     * Descriptors of this process, listening or bound sockets, that workers may listen on by their numbers (`server.listen({ fd })`). Those
     * that systemd has passed (`LISTEN_FDS`) need no naming; others cannot be had.
     */
    descriptors?: number[];
  }

  interface Reload {
    /** When a new worker is ready: it listens, it runs, or it has sent the message `'ready'`. Default: `listening`. */
    ready?: 'listening' | 'online' | 'message';
    /** Milliseconds that it must have been ready; where they are replaced one after the other, the first one. Default: 0. */
    minUptime?: number;
    /** Milliseconds in which it must be ready. Default: 30,000. */
    timeout?: number;
    /** Milliseconds that an old worker has to finish; then it is killed. Default: 30,000. */
    killTimeout?: number;
    /**
     * How many workers more than usual there may be. By default all new ones are started before the first old one leaves, so that a reload
     * that fails has changed nothing; with fewer, workers that were replaced before the failure stay replaced.
     */
    surge?: number;
    /**
     * Whether the new workers may listen elsewhere than the old ones. Otherwise the reload is taken back when an old worker listens on an
     * address, and no new one does within `timeout`. Port 0 and paths with the number of the process do not count.
     * Default: false.
     */
    allowMoved?: boolean;
  }

  /** What a cluster emits, and with which arguments. */
  interface Events {
    setup: [settings: ClusterSettings];
    fork: [worker: Worker];
    online: [worker: Worker];
    listening: [worker: Worker, address: Address];
    message: [worker: Worker, message: any, handle: import('node:net').Socket | import('node:net').Server | undefined];
    disconnect: [worker: Worker];
    exit: [worker: Worker, code: number, signal: string];
    /** No worker was ever ready, and there were too many restarts (see `Respawn`); this worker is the last one that ended. */
    respawnLimit: [worker: Worker, limit: { restarts: number; within: number }];
  }

  type On = <E extends keyof Events>(event: E, listener: (...args: Events[E]) => void) => Cluster;

  type Same = 'isMaster' | 'isPrimary' | 'isWorker' | 'SCHED_NONE' | 'SCHED_RR' | 'disconnect';
  type Other = 'on' | 'once' | 'off' | 'addListener' | 'removeListener' | 'prependListener' | 'prependOnceListener';

  /** Node's `cluster`, with more to choose from. */
  interface Cluster extends Pick<NodeCluster, Same>, Omit<NodeJS.EventEmitter, Other>, Record<Other, On> {
    /** `SCHED_RR`, `SCHED_NONE`, a name or a function; to be set before the first `setupPrimary` or `fork`. */
    schedulingPolicy: number | Scheduling | Chooser;
    readonly settings: ClusterSettings;
    readonly workers?: NodeJS.Dict<Worker>;
    /** In a worker, the worker. */
    readonly worker?: NodeWorker;
    readonly Worker: typeof NodeWorker;
    fork(env?: any): Worker;
    setupPrimary(settings?: ClusterSettings): void;
    /** @deprecated Use `setupPrimary`. */
    setupMaster(settings?: ClusterSettings): void;
    /**
     * Replaces all workers by new ones, of the program as it is now, and resolves when the old ones have ended. Each old one leaves only
     * after its successor is ready. Rejects with `ERR_TROOP_RELOAD` if one of the new ones is not: they leave, and the old ones stay.
     * Rejects with `ERR_TROOP_RELOADING` while there is another reload.
     */
    reload(options?: Reload): Promise<{ replaced: number }>;
  }
}

declare const troop: troop.Cluster;
export = troop;
