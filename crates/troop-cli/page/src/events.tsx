// Events as they happen.

export type Happening = { at: number; app: string; name: string; text: string };

export const clock = (at: number | string) => {
  const date = new Date(at);
  return Number.isNaN(date.getTime()) ? '' : date.toLocaleTimeString('en-GB');
};

export function Events({ events, withApp = false }: { events: Happening[]; withApp?: boolean }) {
  return (
    <section aria-labelledby="events">
      <h2 id="events">Events</h2>
      <div class="lines" tabIndex={0} role="region" aria-label="Events, the newest first">
        {events.length === 0 && <p class="none">None since this page was opened.</p>}
        {events.map((event) => (
          <p key={event}>
            <time>{clock(event.at)}</time> {withApp && <a href={`#/app/${event.app}`}>{event.app}</a>} {event.text}
          </p>
        ))}
      </div>
    </section>
  );
}
