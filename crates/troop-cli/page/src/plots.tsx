// The last hour of an app as plots.

import { useEffect, useRef, useState } from 'preact/hooks';
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';
import { get } from './api';
import { number, size } from './model';

type History = { at: number[] } & Record<string, (number | null)[]>;

/** Interval at which new samples come. */
const INTERVAL = 5000;
const HOUR = 3600_000;
const HEIGHT = 120;

type Kind = { title: string; series: [string, string][]; show: (value: number | null) => string; steps?: number[] };

/** Steps of sizes on an axis: powers of two. */
const SIZES = Array.from({ length: 24 }, (_, power) => 2 ** (power + 20));

const PLOTS: Kind[] = [
  { title: 'CPU', series: [['cpu', 'CPU']], show: (v) => (v === null ? '–' : `${number(v)} %`) },
  { title: 'Memory', series: [['memory', 'memory']], show: (v) => (v === null ? '–' : size(v)), steps: SIZES },
  { title: 'Connections per second', series: [['rate', 'per second']], show: number },
  { title: 'Open and waiting connections', series: [['open', 'open'], ['waiting', 'waiting']], show: number },
  { title: 'Time of hand-overs', series: [['handover', 'mean']], show: (v) => (v === null ? '–' : `${number(v)} ms`) },
  { title: 'Ready workers and restarts', series: [['ready', 'ready'], ['restarts', 'restarts']], show: number },
];

export function Plots({ app }: { app: string }) {
  const [history, setHistory] = useState<History | null>(null);
  useEffect(() => {
    let all: History | null = null;
    let timer: ReturnType<typeof setTimeout>;
    let ended = false;
    const look = async () => {
      try {
        const more = await get<History>(`/history?app=${encodeURIComponent(app)}&since=${all?.at.at(-1) ?? 0}`);
        if (ended) return;
        const from = Date.now() - HOUR;
        const joined: History = { at: [...(all?.at ?? []), ...more.at] };
        const first = joined.at.findIndex((at) => at >= from);
        for (const name of Object.keys(more)) joined[name] = [...(all?.[name] ?? []), ...more[name]!].slice(Math.max(0, first)) as number[];
        if (more.at.length > 0) setHistory((all = joined));
      } catch {
        // The apps are asked too, which tells what is wrong.
      }
      if (!ended) timer = setTimeout(look, document.hidden ? 4 * INTERVAL : INTERVAL);
    };
    void look();
    return () => {
      ended = true;
      clearTimeout(timer);
    };
  }, [app]);
  return (
    <section aria-labelledby="plots">
      <h2 id="plots">The last hour</h2>
      {history ? <div class="plots">{PLOTS.map((kind) => <Plot key={kind.title} kind={kind} history={history} />)}</div>
        : <p class="none">The first samples come within seconds.</p>}
    </section>
  );
}

function Plot({ kind, history }: { kind: Kind; history: History }) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const [at, setAt] = useState<number | null>(null);
  const [theme, setTheme] = useState(0);
  const data = [history.at.map((ms) => ms / 1000), ...kind.series.map(([name]) => history[name])] as uPlot.AlignedData;

  useEffect(() => {
    const dark = matchMedia('(prefers-color-scheme: dark)');
    const changed = () => setTheme((count) => count + 1);
    dark.addEventListener('change', changed);
    return () => dark.removeEventListener('change', changed);
  }, []);

  useEffect(() => {
    const element = place.current!;
    const style = getComputedStyle(element);
    const colour = (name: string) => style.getPropertyValue(name).trim();
    const axis = { stroke: colour('--soft'), grid: { stroke: colour('--line'), width: 1 }, ticks: { show: false }, font: '11px system-ui' };
    const width = () => Math.max(120, element.clientWidth);
    const made = new uPlot({
      width: width(),
      height: HEIGHT,
      legend: { show: false },
      padding: [8, 10, 0, 0],
      cursor: { sync: { key: 'troop' }, y: false, drag: { x: false, y: false } },
      scales: { x: { range: () => [(Date.now() - HOUR) / 1000, Date.now() / 1000] }, y: { range: (_, __, most) => [0, Math.max(1, most * 1.1)] } },
      axes: [
        { ...axis, size: 24, values: (_, ticks) => ticks.map((t) => new Date(t * 1000).toLocaleTimeString('en-GB', { hour: '2-digit', minute: '2-digit' })) },
        { ...axis, size: 60, ...(kind.steps && { incrs: kind.steps }), values: (_, ticks) => ticks.map((t) => kind.show(t)) },
      ],
      series: [{}, ...kind.series.map((_, index) => ({
        stroke: colour(index ? '--second' : '--first'), width: 1.5, dash: index ? [4, 3] : [],
        fill: index ? undefined : colour('--fill'), points: { size: 3 },
      }))],
      hooks: { setCursor: [(self) => setAt(self.cursor.idx ?? null)] },
    }, data, element);
    plot.current = made;
    const watched = new ResizeObserver(() => made.setSize({ width: width(), height: HEIGHT }));
    watched.observe(element);
    return () => {
      watched.disconnect();
      made.destroy();
    };
  }, [theme]);

  useEffect(() => plot.current?.setData(data), [history]);

  const index = at ?? history.at.length - 1;
  const values = kind.series.map(([name, label]) => {
    const value = kind.show(history[name]?.[index] ?? null);
    return kind.series.length > 1 ? `${label} ${value}` : value;
  });
  return (
    <figure>
      <figcaption>{kind.title} <strong>{values.join(', ')}</strong></figcaption>
      <div ref={place} role="img" aria-label={`${kind.title} in the last hour: now ${values.join(', ')}`} />
    </figure>
  );
}
