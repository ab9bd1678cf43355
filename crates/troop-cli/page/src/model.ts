// What is known of the apps, and what follows from it. No part of this touches the page.

export type Worker = {
  id: number;
  pid: number;
  slot: number;
  state: string;
  age_ms: number;
  leaving_ms: number | null;
  ready: boolean | null;
  generation: number | null;
  weight: number;
  stats: { handed: number; taken: number; returned: number; in_flight: number; open: number; load: number; moved: number };
  usage: { cpu_ms: number; rss: number } | null;
};

export type Listener = {
  address: string;
  scheduling: string;
  mode?: { mode: string; age_ms: number; reason: string };
  workers: number;
  waiting: number;
  ignored?: string;
};

export type App = {
  name: string;
  program: string | null;
  phase: string;
  pid: number | null;
  wanted: number | null;
  restarts: number | null;
  uptime_ms?: number;
  reason?: string | null;
  last_end?: string | null;
  last_lines?: string;
  total: { cpu_ms: number; rss: number } | null;
  totals?: { handed: number; taken: number; returned: number; moved: number };
  workers: Worker[];
  listeners: Listener[];
  own?: string[];
  lost?: { address: string; reason: string }[];
  vacant: { slot: number; quick_ends: number; retry_ms: number | null; finished: string | null }[];
};

/** Per second, since a look some seconds ago. */
export type Rates = { cpu: number | null; taken: number | null };

type Look = { at: number; counters: Map<string, { cpu: number; taken: number }> };

/** Time over which rates are measured. */
const RATE_TIME = 3000;

/** Measures rates of apps and workers between looks. */
export class Meter {
  private looks: Look[] = [];

  note(at: number, apps: App[]): void {
    const counters: Look['counters'] = new Map();
    for (const app of apps) {
      if (app.pid === null) continue;
      const cpu = app.total?.cpu_ms ?? 0;
      counters.set(`${app.name} ${app.pid}`, { cpu, taken: app.totals?.taken ?? 0 });
      for (const worker of app.workers) {
        counters.set(`${app.name} ${app.pid} ${worker.id}`, { cpu: worker.usage?.cpu_ms ?? 0, taken: worker.stats.taken });
      }
    }
    this.looks.push({ at, counters });
    // The newest one that is old enough, and those after it.
    while (this.looks.length > 2 && this.looks[1]!.at <= at - RATE_TIME) this.looks.shift();
  }

  of(app: App, worker?: Worker): Rates {
    const key = worker ? `${app.name} ${app.pid} ${worker.id}` : `${app.name} ${app.pid}`;
    const last = this.looks.at(-1);
    const now = last?.counters.get(key);
    const first = this.looks.find((look) => look.counters.has(key));
    const before = first?.counters.get(key);
    if (!last || !first || !now || !before || first === last) return { cpu: null, taken: null };
    const seconds = (last.at - first.at) / 1000;
    const per = (more: number) => Math.max(0, more) / seconds;
    return { cpu: per(now.cpu - before.cpu) / 10, taken: per(now.taken - before.taken) };
  }
}

export const isReady = (worker: Worker) =>
  worker.leaving_ms === null && (worker.ready ?? worker.state === 'listening');

export function workerState(worker: Worker): string {
  if (worker.leaving_ms !== null) return 'draining';
  if (isReady(worker)) return 'ready';
  return worker.ready === null && worker.state !== 'none' ? worker.state : 'starting';
}

export const ready = (app: App) => app.workers.filter(isReady).length;
export const open = (app: App) => app.workers.reduce((sum, worker) => sum + worker.stats.open, 0);
export const waiting = (app: App) => app.listeners.reduce((sum, listener) => sum + listener.waiting, 0);

export type Level = 'well' | 'busy' | 'bad' | 'off';

/** How an app is, besides the word. */
export function level(phase: string): Level {
  if (phase === 'running' || phase === 'ready' || phase === 'waiting') return 'well';
  if (['starting', 'reloading', 'draining', 'stopping', 'paused'].includes(phase)) return 'busy';
  return phase === 'stopped' || phase.startsWith('finished') ? 'off' : 'bad';
}

/** The generations whose workers serve now, the old ones first. */
export function generations(app: App): { name: string; workers: number; open: number; isNew: boolean }[] {
  const newest = Math.max(0, ...app.workers.map((worker) => worker.generation ?? 0));
  const groups = new Map<string, { name: string; workers: number; open: number; isNew: boolean }>();
  const name = (worker: Worker) => (worker.leaving_ms !== null ? 'draining' : `generation ${worker.generation ?? '?'}`);
  const order = [...app.workers].sort((one, other) => (one.generation ?? 0) - (other.generation ?? 0));
  for (const worker of order) {
    const isNew = worker.leaving_ms === null && worker.generation === newest;
    const group = groups.get(name(worker)) ?? { name: name(worker), workers: 0, open: 0, isNew };
    group.workers += 1;
    group.open += worker.stats.open;
    groups.set(name(worker), group);
  }
  return [...groups.values()];
}

export function time(ms: number | null | undefined): string {
  if (ms === null || ms === undefined) return '';
  const s = Math.floor(ms / 1000);
  if (s < 10) return `${(ms / 1000).toFixed(1)} s`;
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} m ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} m`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

export function size(bytes: number | null | undefined): string {
  if (bytes === null || bytes === undefined) return '';
  const mib = bytes / (1 << 20);
  if (mib < 1024) return `${mib.toFixed(mib < 100 ? 1 : 0)} MiB`;
  return `${(mib / 1024).toFixed(1)} GiB`;
}

export function number(value: number | null | undefined): string {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  return value >= 100 || Number.isInteger(value) ? Math.round(value).toLocaleString('en') : value.toFixed(1);
}

/** What lines are searched by: text, or an expression between slashes. */
export function matcher(text: string): ((line: string) => boolean) | null {
  const expression = /^\/(.+)\/$/.exec(text);
  if (expression) {
    try {
      const compiled = new RegExp(expression[1]!, 'i');
      return (line) => compiled.test(line);
    } catch {
      return null;
    }
  }
  const wanted = text.toLowerCase();
  return (line) => line.toLowerCase().includes(wanted);
}
