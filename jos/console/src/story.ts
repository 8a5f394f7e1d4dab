// What happened to a job over time, from its events: its attempts, and what each index did. Pure, and bounded however
// long a job runs: of very many lives of an index the oldest are dropped.
import type { JobEvent } from "./wire";

export interface Span {
  from: number; // ms
  to: number | null; // null: goes on
  state: string; // of an attempt: waiting, admitted, running, leaving; of an index: up, lost
  end?: string; // how it ended, in the event's words
}

export interface Story {
  last: number; // id of the last event told
  attempts: Span[];
  lanes: ReadonlyMap<number, Span[]>;
}

export const TOLD = [
  "job.created",
  "job.admitted",
  "job.started",
  "job.preempted",
  "job.requeued",
  "job.completed",
  "job.failed",
  "job.canceled",
  "job.retried",
  "index.started",
  "index.lost",
  "index.restarted",
  "index.completed",
] as const;
const MOST_SPANS = 100; // kept of each row
const MOST_LANES = 256;

const NEXT: Record<string, string | null> = {
  "job.created": "waiting",
  "job.admitted": "admitted",
  "job.started": "running",
  "job.preempted": "leaving",
  "job.requeued": "waiting",
  "job.retried": "waiting",
  "job.completed": null,
  "job.failed": null,
  "job.canceled": null,
};

export const BEGINNING: Story = { last: 0, attempts: [], lanes: new Map() };

/** The story with these events; those told before are passed over. */
export function told(story: Story, events: readonly JobEvent[]): Story {
  let { last, attempts } = story;
  const lanes = new Map(story.lanes);
  for (const event of [...events].sort((a, b) => a.id - b.id)) {
    if (event.id <= last) continue;
    last = event.id;
    const at = Date.parse(event.created_at);
    const state = NEXT[event.event_type];
    if (state !== undefined) attempts = moved(attempts, at, state, event.message);
    if (state === null || event.event_type === "job.requeued" || event.event_type === "job.preempted") {
      for (const [index, spans] of lanes) lanes.set(index, moved(spans, at, null, event.message));
    }
    const index = event.index;
    if (index === null || index === undefined || (!lanes.has(index) && lanes.size >= MOST_LANES)) continue;
    const spans = lanes.get(index) ?? [];
    if (event.event_type === "index.started" || event.event_type === "index.restarted") lanes.set(index, moved(spans, at, "up", ""));
    if (event.event_type === "index.lost") lanes.set(index, moved(spans, at, "lost", event.message));
    if (event.event_type === "index.completed") lanes.set(index, moved(spans, at, null, event.message));
  }
  return { last, attempts, lanes };
}

function moved(spans: readonly Span[], at: number, state: string | null, end: string): Span[] {
  const open = spans.at(-1);
  const closed = open && open.to === null ? [...spans.slice(0, -1), { ...open, to: at, end }] : [...spans];
  if (state !== null) closed.push({ from: at, to: null, state });
  return closed.slice(-MOST_SPANS);
}
