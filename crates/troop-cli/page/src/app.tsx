// The page: who may see it, which apps there are, and what they do.

import { render } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { Unauthorized, follow, get, login, logout } from './api';
import type { Session } from './api';
import { AppView } from './app-view';
import { Events } from './events';
import type { Happening } from './events';
import { Meter, level, number, open, ready, size, time, waiting } from './model';
import type { App } from './model';
import './style.css';

/** Intervals at which the apps are asked: as a rule, and while connections move. */
const CALM = 1000;
const MOVING = 250;
/** The most events that are kept. */
const MAX_EVENTS = 300;

const opened = () => /^#\/app\/([^/]+)$/.exec(location.hash)?.[1] ?? null;

function Page() {
  const [session, setSession] = useState<Session | null | 'unknown'>('unknown');
  const [apps, setApps] = useState<App[] | null>(null);
  const [lost, setLost] = useState<string | null>(null);
  const [name, setName] = useState(opened());
  const [events, setEvents] = useState<Happening[]>([]);
  const meter = useRef(new Meter());
  const lookNow = useRef(() => {});

  useEffect(() => {
    const changed = () => setName(opened());
    addEventListener('hashchange', changed);
    return () => removeEventListener('hashchange', changed);
  }, []);

  const begin = () =>
    get<Session>('/session').then(setSession, (e) => {
      if (e instanceof Unauthorized) setSession(null);
      else setTimeout(begin, 2000, setLost(String(e.message ?? e)));
    });
  useEffect(() => void begin(), []);

  const isIn = session !== null && session !== 'unknown';
  useEffect(() => {
    if (!isIn) return;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let ended = false;
    // One look at a time.
    let [isLooking, again] = [false, false];
    const look = async () => {
      if (isLooking) {
        again = true;
        return;
      }
      let next = CALM;
      isLooking = true;
      again = false;
      try {
        const apps = await get<App[]>('/snapshot');
        if (ended) return;
        meter.current.note(performance.now(), apps);
        setApps(apps);
        setLost(null);
        if (apps.some((app) => app.phase === 'reloading' || app.workers.some((w) => w.leaving_ms !== null))) next = MOVING;
      } catch (e) {
        if (ended) return;
        if (e instanceof Unauthorized) return setSession(null);
        setLost((e as Error).message);
      } finally {
        isLooking = false;
      }
      if (again) next = MOVING;
      // A page that nobody sees asks for nothing.
      if (!document.hidden) timer = setTimeout(look, next);
    };
    const seen = () => {
      clearTimeout(timer);
      if (!document.hidden) void look();
    };
    void look();
    lookNow.current = seen;
    document.addEventListener('visibilitychange', seen);
    return () => {
      ended = true;
      clearTimeout(timer);
      document.removeEventListener('visibilitychange', seen);
    };
  }, [isIn]);

  useEffect(() => {
    if (!isIn) return;
    let queued: Happening[] = [];
    let timer: ReturnType<typeof setTimeout> | undefined;
    const show = () => {
      timer = undefined;
      const more = queued.reverse();
      queued = [];
      setEvents((all) => [...more, ...all].slice(0, MAX_EVENTS));
      lookNow.current();
    };
    const stop = follow(() => '/events', ({ event, data }) => {
      // Messages of workers are the program's own.
      if (event === 'message' || event === 'request') return;
      queued = [...queued.slice(-MAX_EVENTS), { at: data.time_ms ?? Date.now(), app: data.app, name: event, text: data.text ?? event }];
      timer ??= setTimeout(show, 100);
    }, () => {});
    return () => {
      clearTimeout(timer);
      stop();
    };
  }, [isIn]);

  const app = apps?.find((app) => app.name === name);
  useEffect(() => {
    document.title = name ? `${name} · troop` : 'troop';
  }, [name]);

  if (session === 'unknown') return <main class="middle">{lost ? `No answer: ${lost}` : 'Connecting…'}</main>;
  if (session === null) return <Login done={begin} />;
  const leave = () => logout().then(() => { setSession(null); setApps(null); setEvents([]); });
  return (
    <>
      <header>
        <a class="home" href="#/" aria-current={name ? undefined : 'page'}>troop</a>
        {name && <span class="where">{name}</span>}
        <span class="host">{session.host}</span>
        <span class="version">{session.version}</span>
        <button class="quiet" onClick={leave}>Log out</button>
      </header>
      {lost !== null && <p class="lost" role="alert">No answer: {lost}. Trying again; what follows is old.</p>}
      <main>
        {apps === null ? <p>Asking the apps…</p>
          : name === null ? <Overview apps={apps} meter={meter.current} events={events} />
          : app ? <AppView key={name} app={app} meter={meter.current} verbs={session.verbs} events={events.filter((e) => e.app === name)} />
          : <p>There is no app {name}. <a href="#/">All apps</a></p>}
      </main>
      <footer><a href="/page/licences.txt">Licences</a></footer>
    </>
  );
}

function Login({ done }: { done: () => void }) {
  const [failed, setFailed] = useState('');
  const [busy, setBusy] = useState(false);
  const enter = async (event: SubmitEvent) => {
    event.preventDefault();
    const form = event.target as HTMLFormElement;
    setBusy(true);
    setFailed('');
    try {
      await login(String(new FormData(form).get('token')));
      done();
    } catch (e) {
      setFailed((e as Error).message);
    }
    setBusy(false);
  };
  return (
    <main class="middle">
      <form class="login" onSubmit={enter}>
        <h1>troop</h1>
        <label for="token">Token</label>
        <input id="token" name="token" type="password" autocomplete="current-password" required autofocus
          aria-describedby="how" aria-invalid={failed !== ''} />
        <p id="how"><code>troop admin --show-token</code> prints it.</p>
        {failed && <p class="failed" role="alert">{failed}</p>}
        <button disabled={busy}>Log in</button>
      </form>
    </main>
  );
}

export function State({ word }: { word: string }) {
  return <span class={`state ${level(word)}`}>{word.replaceAll('-', ' ')}</span>;
}

function Overview({ apps, meter, events }: { apps: App[]; meter: Meter; events: Happening[] }) {
  return (
    <>
      <h1>Apps</h1>
      <div class="scroll" tabIndex={0} role="region" aria-label="Apps">
        <table>
          <thead>
            <tr>
              <th scope="col">App</th><th scope="col">State</th><th scope="col" class="number">Workers</th>
              <th scope="col" class="number">CPU</th><th scope="col" class="number wide">Memory</th>
              <th scope="col" class="number">Conn./s</th><th scope="col" class="number wide">Open</th>
              <th scope="col" class="number wide">Waiting</th><th scope="col" class="number wide">Restarts</th>
              <th scope="col" class="number wide">Uptime</th><th scope="col" class="wide">Listens on</th>
            </tr>
          </thead>
          <tbody>
            {apps.map((app) => {
              const rates = meter.of(app);
              return (
                <tr key={app.name}>
                  <th scope="row"><a href={`#/app/${app.name}`}>{app.name}</a></th>
                  <td><State word={app.phase} /></td>
                  <td class="number">{ready(app)}/{app.wanted ?? app.workers.length}</td>
                  <td class="number">{rates.cpu === null ? '–' : `${number(rates.cpu)} %`}</td>
                  <td class="number wide">{app.pid ? size(app.total?.rss) : '–'}</td>
                  <td class="number">{number(rates.taken)}</td>
                  <td class="number wide">{number(open(app))}</td>
                  <td class="number wide">{number(waiting(app))}</td>
                  <td class="number wide">{number(app.restarts)}</td>
                  <td class="number wide">{time(app.uptime_ms)}</td>
                  <td class="wide">{[...app.listeners.map((l) => l.address), ...(app.own ?? [])].join(' ')}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
      {apps.length === 0 && <p>There are no apps: <code>troop start</code> starts one.</p>}
      <Events events={events} withApp />
    </>
  );
}

render(<Page />, document.getElementById('app')!);
