// Requests to `troop admin`.

/** Half of a session, of this port alone; the other half is a cookie that no script can read. */
const KEY = 'troop-key';

/** The token has to be given. */
export class Unauthorized extends Error {}

export type Session = { host: string; version: string; verbs: string[] };

async function send(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = { 'troop-key': localStorage.getItem(KEY) ?? '' };
  const answer = await fetch(path, { ...init, headers, cache: 'no-store', redirect: 'error' });
  if (answer.status === 401) throw new Unauthorized();
  return answer;
}

export async function get<T>(path: string): Promise<T> {
  const answer = await send(path);
  if (!answer.ok) throw new Error((await answer.text()).trim() || `status ${answer.status}`);
  return answer.json();
}

/** Carries out a verb. Returns what it says. */
export async function verb(app: string, name: string, options: object): Promise<string> {
  const path = `/apps/${encodeURIComponent(app)}/${name}`;
  const answer = await send(path, { method: 'POST', body: JSON.stringify(options) });
  const { done, failed } = await answer.json();
  if (!answer.ok) throw new Error(failed ?? `status ${answer.status}`);
  const one = Array.isArray(done) ? done[0] : done;
  if (!one || typeof one !== 'object') return 'done';
  const plain = Object.entries(one).filter(([field, value]) => field !== 'name' && typeof value !== 'object');
  return plain.map(([field, value]) => `${field.replaceAll('_', ' ')} ${value}`).join(', ') || 'done';
}

export async function login(token: string): Promise<void> {
  const answer = await fetch('/login', { method: 'POST', body: JSON.stringify({ token }), cache: 'no-store' });
  const { key, failed } = await answer.json();
  if (!answer.ok) throw new Error(failed);
  localStorage.setItem(KEY, key);
}

export async function logout(): Promise<void> {
  await send('/logout', { method: 'POST' }).catch(() => {});
  localStorage.removeItem(KEY);
}

export type Sent = { event: string; data: any };

/** Server-sent events, as they come. EventSource cannot send the key. */
async function* events(path: string, signal: AbortSignal): AsyncGenerator<Sent> {
  const answer = await send(path, { signal });
  if (!answer.ok || !answer.body) throw new Error((await answer.text()).trim());
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ''; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (text + value).split('\n\n');
    text = blocks.pop() ?? '';
    for (const block of blocks) {
      const field = (name: string) =>
        block.split('\n').find((line) => line.startsWith(name))?.slice(name.length);
      const data = field('data: ');
      if (data) yield { event: field('event: ') ?? 'message', data: JSON.parse(data) };
    }
  }
}

/** Follows server-sent events until the returned function is called. Begins again when a connection ends. */
export function follow(path: () => string, each: (sent: Sent) => void, begun: () => void): () => void {
  const controller = new AbortController();
  const run = async () => {
    while (!controller.signal.aborted) {
      let wait = 2000;
      try {
        begun();
        for await (const sent of events(path(), controller.signal)) {
          each(sent);
          // There are no more for now.
          if (sent.event === 'end') wait = 10_000;
        }
      } catch {
        // The page asks for the apps too, and says what is wrong.
      }
      await new Promise((wake) => setTimeout(wake, wait));
    }
  };
  void run();
  return () => controller.abort();
}
