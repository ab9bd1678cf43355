/// <reference types="node" />

import type nodeCluster from 'node:cluster';
import type { Address, ClusterSettings as NodeSettings, Worker as NodeWorker } from 'node:cluster';

type NodeCluster = typeof nodeCluster;

declare namespace troop {
  /**
   * How connections are spread over workers, by the names of `troop run --policy`: see `docs/scheduling.md`.
   *
   * - `round-robin`: exact turns among ready workers (Node's `SCHED_RR`, the default);
   * - `auto`: exact turns while connections are few, `steered` while they are many;
   * - `shared`: all workers accept on one socket (Node's `SCHED_NONE`);
   * - `steered`: the kernel chooses, by weight and load, at no cost for the primary;
   * - `least-connections`, `p2c`: by connections open at the worker;
   * - `sticky`, `steered:sticky`: all connections of a client to one worker;
   * - `weighted`: turns in proportion to weights.
   */
  type Scheduling =
    | 'round-robin' | 'auto' | 'shared' | 'steered' | 'least-connections' | 'p2c' | 'weighted' | 'sticky' | 'steered:sticky'
    | `sticky:${string}` | `steered:sticky:${string}`;

  /** A connection for which a worker is to be chosen. */
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
    /** Whether the worker would take a connection immediately. If it is chosen and not ready, the connection waits for it. */
    ready: boolean;
    /** Number of open connections: an estimate from the worker's descriptors. */
    open: number;
    /** Number of connections that were handed over and are not acknowledged yet. */
    pending: number;
    /** Relative share of connections, usually 100. */
    weight: number;
  }

  /**
   * Chooses the worker for a connection. Called on the JavaScript thread for each connection, which waits up to a second for the answer. Without
   * an answer, or if the function throws, the next worker in turn gets the connection.
   */
  type Chooser = (connection: Connection, candidates: Candidate[]) => Worker | Candidate | null | undefined | void;

  /** Counters of one worker. Under `shared` and `steered` workers accept connections by themselves, which are not counted. */
  interface Counters {
    /** Connections that the primary handed over. */
    handed: number;
    /** Connections that the worker acknowledged. */
    taken: number;
    /** Connections that the worker rejected or returned. */
    returned: number;
    /** Connections that the worker has not acknowledged yet. */
    inFlight: number;
    /** Open connections: an estimate from the worker's descriptors. */
    open: number;
    /** Minor violations of the channel's rules. */
    violations: number;
  }

  interface Worker extends NodeWorker {
    /** Returns the worker's counters; after its end, their values at its disconnect. `undefined` if its process could not be started. */
    counters(): Counters | undefined;
  }

  /** Restarts of workers that die. A worker that was asked to disconnect is not restarted. Each slot has its own back-off. */
  interface Respawn {
    /** Milliseconds before the restart of a worker that died within `minUptime`; doubled each time, less up to a quarter. Default: 100. */
    delay?: number;
    /** The longest delay of a restart, in milliseconds. Default: 30,000. */
    maxDelay?: number;
    /** Milliseconds that a worker must have been ready to be restarted immediately. Default: 1,000. */
    minUptime?: number;
    /**
     * Number of restarts within `within`, before any worker was ready, after which no more workers are started and `respawnLimit` is emitted.
     * Default: 8, or 4 for each worker.
     */
    restarts?: number;
    /** Milliseconds in which `restarts` are counted. Default: 60,000. */
    within?: number;
  }

  interface ClusterSettings extends NodeSettings {
    /**
     * Whether workers that die are forked again, with the same environment. Their listeners stay open meanwhile, and close if the new workers
     * listen on other addresses. Default: false.
     */
    respawn?: boolean | Respawn;
    /**
     * Descriptors of this process, listening or bound sockets, that workers may listen on by their numbers (`server.listen({ fd })`), besides
     * those that systemd has passed (`LISTEN_FDS`). Other descriptors are refused.
     */
    descriptors?: number[];
    /**
     * Whether idle HTTP/1 connections move to other workers when theirs drains, by a script that Node loads into workers before the program.
     * Default: true.
     */
    moveConnections?: boolean;
  }

  interface Reload {
    /** When a new worker is ready: when it listens, when it is online, or when it has sent the message `'ready'`. Default: `listening`. */
    ready?: 'listening' | 'online' | 'message';
    /** Milliseconds that a new worker must stay ready; with `surge`, the first new worker. Default: 0. */
    minUptime?: number;
    /** Milliseconds within which a new worker must be ready. Default: 30,000. */
    timeout?: number;
    /** Grace period of an old worker in milliseconds, after which it is killed. Default: 30,000. */
    killTimeout?: number;
    /**
     * Number of workers that may run beyond the usual number. By default all new workers are started before the first old one drains, so that a
     * failed reload changes nothing; with a limit, workers that were replaced before the failure stay replaced.
     */
    surge?: number;
    /**
     * Whether the new workers may listen on other addresses than the old ones. If not, the reload is rolled back when no new worker listens
     * within `timeout` on an address of an old one. Port 0 and paths with the number of the process are exempt. Default: false.
     */
    allowMoved?: boolean;
  }

  /** The events of a cluster, with their arguments. */
  interface Events {
    setup: [settings: ClusterSettings];
    fork: [worker: Worker];
    online: [worker: Worker];
    listening: [worker: Worker, address: Address];
    message: [worker: Worker, message: any, handle: import('node:net').Socket | import('node:net').Server | undefined];
    disconnect: [worker: Worker];
    exit: [worker: Worker, code: number, signal: string];
    /** No worker was ever ready, and the limit of restarts was reached (see `Respawn`); the worker is the one that ended last. */
    respawnLimit: [worker: Worker, limit: { restarts: number; within: number }];
  }

  type On = <E extends keyof Events>(event: E, listener: (...args: Events[E]) => void) => Cluster;

  type Same = 'isMaster' | 'isPrimary' | 'isWorker' | 'SCHED_NONE' | 'SCHED_RR' | 'disconnect';
  type Other = 'on' | 'once' | 'off' | 'addListener' | 'removeListener' | 'prependListener' | 'prependOnceListener';

  /** Node's `cluster`, with more schedulings, restarts and reloads. */
  interface Cluster extends Pick<NodeCluster, Same>, Omit<NodeJS.EventEmitter, Other>, Record<Other, On> {
    /** `SCHED_RR`, `SCHED_NONE`, a name or a function. Must be set before the first `setupPrimary` or `fork`. */
    schedulingPolicy: number | Scheduling | Chooser;
    readonly settings: ClusterSettings;
    readonly workers?: NodeJS.Dict<Worker>;
    /** The worker that this process is; undefined in a primary. */
    readonly worker?: NodeWorker;
    readonly Worker: typeof NodeWorker;
    fork(env?: any): Worker;
    setupPrimary(settings?: ClusterSettings): void;
    /** @deprecated Use `setupPrimary`. */
    setupMaster(settings?: ClusterSettings): void;
    /**
     * Replaces all workers by new ones that run the current program, and resolves when the old ones have ended. An old worker drains only
     * after its successor is ready. Rejects with `ERR_TROOP_RELOAD` if a new worker does not become ready: the new workers are ended, and the
     * old ones stay. Rejects with `ERR_TROOP_RELOADING` during another reload.
     */
    reload(options?: Reload): Promise<{ replaced: number }>;
  }
}

declare const troop: troop.Cluster;
export = troop;
