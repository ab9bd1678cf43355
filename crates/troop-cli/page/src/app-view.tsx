// One app: its workers, listeners, plots, events and logs.

import { useEffect, useRef } from 'preact/hooks';
import { State } from './app';
import { Events } from './events';
import type { Happening } from './events';
import { Logs } from './logs';
import { generations, number, open, ready, size, time, waiting, workerState } from './model';
import type { App, Meter, Worker } from './model';
import { Plots } from './plots';
import { Verbs, useVerb } from './verbs';
import type { Carry } from './verbs';

export function AppView({ app, meter, verbs, events }: { app: App; meter: Meter; verbs: string[]; events: Happening[] }) {
  const rates = meter.of(app);
  const [carry, told] = useVerb(app.name);
  const facts: [string, string][] = [
    ['workers', `${ready(app)}/${app.wanted ?? app.workers.length}`],
    ['connections/s', number(rates.taken)],
    ['open', number(open(app))],
    ['waiting', number(waiting(app))],
    ['CPU', rates.cpu === null ? '–' : `${number(rates.cpu)} %`],
    ['memory', size(app.total?.rss)],
    ['restarts', number(app.restarts)],
    ['uptime', time(app.uptime_ms)],
  ];
  const bad = [
    ...(app.lost ?? []).map((lost) => `${lost.address} is lost: ${lost.reason}`),
    ...app.listeners.filter((l) => l.ignored).map((l) => `${l.address}: ${l.ignored}`),
    ...(app.phase === 'degraded' && app.last_end ? [`the last unexpected end: ${app.last_end}`] : []),
    ...(app.reason ? [app.reason] : []),
  ];
  return (
    <>
      <div class="title">
        <h1>{app.name}</h1>
        <State word={app.phase} />
        <Verbs app={app} verbs={verbs} carry={carry} />
      </div>
      <p class="told" role="status">{told}</p>
      {bad.map((text) => <p class="failed" key={text}>{text}</p>)}
      <dl class="facts">
        {facts.map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}
      </dl>
      <Moving app={app} />
      <Workers app={app} meter={meter} carry={verbs.includes('reload') ? carry : null} />
      <Listeners app={app} />
      <Plots app={app.name} />
      <Events events={events} />
      <Logs app={app.name} />
    </>
  );
}

/** Time for which what has moved stays to be read. */
const MOVED_STAYS = 5000;

/** The connections of old and new workers, as they move. */
function Moving({ app }: { app: App }) {
  const isMoving = app.phase === 'reloading' || app.workers.some((worker) => worker.leaving_ms !== null);
  const moved = app.totals?.moved ?? 0;
  const before = useRef({ moved, until: 0 });
  if (isMoving) before.current.until = Date.now() + MOVED_STAYS;
  const isShown = Date.now() < before.current.until;
  useEffect(() => {
    if (!isShown) before.current.moved = moved;
  });
  if (!isShown) return null;
  const groups = generations(app);
  const all = Math.max(1, open(app));
  return (
    <section class="moving" aria-labelledby="moving">
      <h2 id="moving">Connections on the move</h2>
      <p><strong>{number(moved - before.current.moved)}</strong> moved to other workers so far, <strong>{number(open(app))}</strong> open</p>
      {groups.map((group) => (
        <div class="group" key={group.name}>
          <span>{group.name}: {group.workers} {group.workers === 1 ? 'worker' : 'workers'}</span>
          <meter class={group.isNew ? 'new' : 'old'} min={0} max={all} value={group.open} aria-label={`open connections, ${group.name}`} />
          <span class="number">{number(group.open)} open</span>
        </div>
      ))}
    </section>
  );
}

function Workers({ app, meter, carry }: { app: App; meter: Meter; carry: Carry | null }) {
  const rows = app.workers.map((worker) => ({ worker, rates: meter.of(app, worker) }));
  // Who gets how much: of what comes now, or else of all so far.
  const now = rows.reduce((sum, { rates }) => sum + (rates.taken ?? 0), 0);
  const part = ({ worker, rates }: (typeof rows)[number]) => (now > 0 ? rates.taken ?? 0 : worker.stats.taken);
  const all = rows.reduce((sum, row) => sum + part(row), 0);
  return (
    <section aria-labelledby="workers">
      <h2 id="workers">Workers</h2>
      <div class="scroll" tabIndex={0} role="region" aria-label="Workers">
        <table>
          <thead>
            <tr>
              <th scope="col" class="number">Slot</th><th scope="col">State</th><th scope="col" class="number wide">Worker</th>
              <th scope="col" class="number wide">Process</th><th scope="col" class="number wide">Gen.</th>
              <th scope="col" class="number wide">Age</th><th scope="col" class="number">CPU</th>
              <th scope="col" class="number">Memory</th><th scope="col" class="number">Open</th>
              <th scope="col" class="number wide">In flight</th><th scope="col" class="number wide">Conn./s</th>
              <th scope="col">Share</th>{carry && <th scope="col"><span class="unseen">Verbs</span></th>}
            </tr>
          </thead>
          <tbody>
            {rows.map((row) => {
              const { worker, rates } = row;
              const share = all > 0 ? part(row) / all : 0;
              return (
                <tr key={worker.id}>
                  <th scope="row" class="number">{worker.slot}</th>
                  <td><State word={workerState(worker)} />{left(worker)}</td>
                  <td class="number wide">{worker.id}</td>
                  <td class="number wide">{worker.pid}</td>
                  <td class="number wide">{worker.generation ?? ''}</td>
                  <td class="number wide">{time(worker.age_ms)}</td>
                  <td class="number">{rates.cpu === null ? '–' : `${number(rates.cpu)} %`}</td>
                  <td class="number">{size(worker.usage?.rss)}</td>
                  <td class="number">{number(worker.stats.open)}</td>
                  <td class="number wide">{number(worker.stats.in_flight)}</td>
                  <td class="number wide">{number(rates.taken)}</td>
                  <td class="share">
                    <meter min={0} max={1} value={share} aria-label={`share of worker ${worker.id}`} />
                    <span class="number">{Math.round(share * 100)} %</span>
                  </td>
                  {carry && (
                    <td>
                      <button class="small" aria-label={`Replace worker ${worker.id}`} disabled={worker.leaving_ms !== null}
                        onClick={() => carry('reload', { worker: worker.id })}>Replace</button>
                    </td>
                  )}
                </tr>
              );
            })}
            {app.vacant.map((slot) => (
              <tr key={`slot ${slot.slot}`}>
                <th scope="row" class="number">{slot.slot}</th>
                <td colSpan={carry ? 12 : 11}>
                  {slot.finished ? `finished: ${slot.finished}`
                    : slot.retry_ms === null ? 'vacant, starting'
                    : `vacant, the next start in ${time(slot.retry_ms)} after ${slot.quick_ends} quick ends`}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

const left = (worker: Worker) => (worker.leaving_ms === null ? null : <small> {time(worker.leaving_ms)} left</small>);

function Listeners({ app }: { app: App }) {
  if (app.listeners.length === 0 && !app.own?.length) return null;
  return (
    <section aria-labelledby="listeners">
      <h2 id="listeners">Listeners</h2>
      <div class="scroll" tabIndex={0} role="region" aria-label="Listeners">
        <table>
          <thead>
            <tr>
              <th scope="col">Address</th><th scope="col">Policy</th><th scope="col" class="number">Workers</th>
              <th scope="col" class="number">Waiting</th><th scope="col" class="wide">Now</th>
            </tr>
          </thead>
          <tbody>
            {app.listeners.map((listener) => (
              <tr key={listener.address}>
                <th scope="row">{listener.address}</th>
                <td>{listener.scheduling}</td>
                <td class="number">{listener.workers}</td>
                <td class="number">{number(listener.waiting)}</td>
                <td class="wide">{listener.mode && `${listener.mode.mode} for ${time(listener.mode.age_ms)}: ${listener.mode.reason}`}</td>
              </tr>
            ))}
            {app.own?.map((address) => (
              <tr key={address}><th scope="row">{address}</th><td colSpan={4}>workers listen by themselves, past the primary</td></tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
