// Live logs of an app, with search.

import { useEffect, useRef, useState } from 'preact/hooks';
import { follow } from './api';
import { clock } from './events';
import { matcher } from './model';

type Line = { number: number; time: string; slot: number | null; stream: string; text: string };

/** The most lines that are kept, and the most that are shown. */
const MAX_KEPT = 5000;
const MAX_SHOWN = 500;
const MARKS: Record<string, string> = { out: '|', err: '!', event: '*' };

export function Logs({ app }: { app: string }) {
  const [lines, setLines] = useState<Line[]>([]);
  const [reason, setReason] = useState('');
  const [search, setSearch] = useState('');
  const [stream, setStream] = useState('all');
  const [follows, setFollows] = useState(true);
  const box = useRef<HTMLDivElement>(null);

  useEffect(() => {
    let all: Line[] = [];
    let count = 0;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const show = () => {
      timer = undefined;
      setLines(all);
    };
    const stop = follow(() => `/logs?app=${encodeURIComponent(app)}&lines=1000`, ({ event, data }) => {
      if (event === 'end') return setReason(data.reason);
      setReason('');
      count += 1;
      all = all.length < MAX_KEPT ? all : all.slice(MAX_KEPT / 10);
      // A new array, by which a change is noticed.
      all = timer === undefined ? [...all] : all;
      all.push({ number: count, ...data });
      timer ??= setTimeout(show, 100);
    }, () => { all = []; });
    return () => {
      clearTimeout(timer);
      stop();
    };
  }, [app]);

  const matches = matcher(search);
  const found = matches
    ? lines.filter((line) => (stream === 'all' || line.stream === stream) && matches(line.text))
    : [];
  const shown = found.slice(-MAX_SHOWN);
  useEffect(() => {
    if (follows && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [shown.at(-1)?.number, shown.length, follows]);

  return (
    <section aria-labelledby="logs">
      <h2 id="logs">Logs</h2>
      <div class="search">
        <label for="search">Search</label>
        <input id="search" type="search" placeholder="text or /expression/" value={search} aria-invalid={matches === null}
          onInput={(event) => setSearch(event.currentTarget.value)} />
        <label for="stream">Stream</label>
        <select id="stream" value={stream} onChange={(event) => setStream(event.currentTarget.value)}>
          <option value="all">all</option><option value="out">output</option>
          <option value="err">errors</option><option value="event">events</option>
        </select>
        <label><input type="checkbox" checked={follows} onChange={(event) => setFollows(event.currentTarget.checked)} /> Follow</label>
        <span class="count">{matches === null ? 'no valid expression' : `${found.length} of ${lines.length} lines`}</span>
      </div>
      <div class="lines logs" tabIndex={0} role="region" aria-label="Log lines" ref={box}>
        {reason && <p class="none">{reason}</p>}
        {shown.map((line) => (
          <p key={line.number} class={line.stream}>
            <time>{clock(line.time)}</time> <span class="slot">{line.slot ?? '-'} {MARKS[line.stream] ?? ''}</span> {line.text}
          </p>
        ))}
      </div>
    </section>
  );
}
