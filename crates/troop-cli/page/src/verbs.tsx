// What can be done to an app, as far as `--verbs` allows it.

import { useRef, useState } from 'preact/hooks';
import { verb } from './api';
import type { App } from './model';

export type Carry = (name: string, options?: object) => void;

/** Carries verbs out, and tells how they go. */
export function useVerb(app: string): [Carry, string] {
  const [told, setTold] = useState('');
  const carry: Carry = (name, options = {}) => {
    setTold(`${name}: begun`);
    verb(app, name, options).then(
      (done) => setTold(`${name}: ${done}`),
      (e) => setTold(`${name} failed: ${e.message || 'the token has to be given again'}`),
    );
  };
  return [carry, told];
}

export function Verbs({ app, verbs, carry }: { app: App; verbs: string[]; carry: Carry }) {
  const [workers, setWorkers] = useState<string | null>(null);
  const [asking, setAsking] = useState<string | null>(null);
  const dialog = useRef<HTMLDialogElement>(null);
  const runs = app.pid !== null;
  const may = (name: string) => verbs.includes(name) && (name === 'start' ? !runs : runs);
  const ask = (name: string) => {
    setAsking(name);
    dialog.current?.showModal();
  };
  const wanted = app.wanted ?? app.workers.length;
  const scale = (event: SubmitEvent) => {
    event.preventDefault();
    carry('scale', { workers: Number(workers ?? wanted) });
    setWorkers(null);
  };
  return (
    <div class="verbs">
      {may('start') && <button onClick={() => carry('start')}>Start</button>}
      {may('reload') && <button onClick={() => carry('reload')}>Reload</button>}
      {may('scale') && (
        <form class="scale" onSubmit={scale}>
          <label for="number">Workers</label>
          <input id="number" type="number" min={0} max={4096} required value={workers ?? wanted}
            onInput={(event) => setWorkers(event.currentTarget.value)} />
          <button>Scale</button>
        </form>
      )}
      {may('restart') && <button class="danger" onClick={() => ask('restart')}>Restart…</button>}
      {may('stop') && <button class="danger" onClick={() => ask('stop')}>Stop…</button>}
      <dialog ref={dialog} aria-labelledby="question"
        onClose={(event) => event.currentTarget.returnValue === 'yes' && asking && carry(asking)}>
        <form method="dialog">
          <p id="question">
            {asking === 'stop' ? `Stop ${app.name}? It serves nobody then.` : `Restart ${app.name}? All workers end before others start.`}
          </p>
          <button value="no" autofocus>Cancel</button>
          <button class="danger" value="yes">{asking === 'stop' ? 'Stop' : 'Restart'}</button>
        </form>
      </dialog>
    </div>
  );
}
