// One job, live. The event stream says when something happened; the figures are then asked for, at most twice a second.
// What is kept is bounded: the newest events, the spans of the time line, the inputs under way.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { get, send } from "../api";
import { count, duration, eta, figure, sampled, type Sample } from "../format";
import { Bar, Problem, Status, Sure, When } from "../parts";
import { usePoll } from "../poll";
import { go } from "../route";
import { BEGINNING, TOLD, told, type Story } from "../story";
import { follow, type Connection, type Message } from "../stream";
import { advice } from "../advice";
import { FINAL, type EventList, type InputProgressList, type Job, type JobEvent, type Progress, type ProgressList } from "../wire";
import { Learning, Throughput } from "./job_curves";
import { Events } from "./job_events";
import { Inputs, Outputs } from "./job_files";
import { TimeLine } from "./job_time";
import { ended, took, Why } from "./jobs";

const LIVE = 3000; // ms between looks at the job, besides those that its events cause
const FLUSH = 500; // ms that messages are gathered
const MOST = 1000; // rows of one question

export interface Live {
  story: Story;
  later: JobEvent[] | null; // of the time line, while what lies before them is still asked for; null once it is there
  events: JobEvent[]; // that came since the page was opened, newest first
  partial: ReadonlyMap<string, number>; // input under way -> 0 to 1
  connection: Connection | "connecting";
  turn: number; // counts the flushes
}

const KEPT = 500; // live events
const TOLD_MOST = 20_000; // events that the time line is made of
const QUIET: Live = { story: BEGINNING, later: [], events: [], partial: new Map(), connection: "connecting", turn: 0 };

export function JobPage({ id }: { id: string }) {
  const path = `/batch/jobs/${encodeURIComponent(id)}`;
  const [over, setOver] = useState(false);
  const { value: job, error, again } = usePoll((signal) => get<Job>(path, {}, signal), over ? 0 : LIVE, [id]);
  const final = job ? FINAL.has(job.status) : false;
  useEffect(() => setOver(final), [final]);
  const [run, setRun] = useState(0);
  const { live, error: broken } = useLive(path, id, run, again);
  const retried = () => {
    setOver(false);
    setRun((n) => n + 1);
    again();
  };
  if (!job) return error ? <Problem error={error} /> : <p role="status">Loading…</p>;
  const end = ended(job);
  return (
    <>
      <p>
        <a href="#/jobs">Jobs</a>
      </p>
      <Head job={job} live={live} retried={retried} again={again} />
      <Problem error={error ?? broken} />
      <Overall job={job} live={live} />
      <Failure job={job} />
      <TimeLine story={live.story} end={final && end ? Date.parse(end) : Date.now()} />
      <Throughput job={job} live={!final} />
      {job.pipeline_type === "training" && <Learning job={job} live={!final} />}
      <Outputs job={job} live={!final} />
      <Inputs job={job} live={!final} />
      <Events job={job} live={live} />
      <section aria-label="Configuration">
        <h2>Configuration</h2>
        <pre class="scroll" tabIndex={0}>
          {JSON.stringify(job.parameters, null, 2)}
        </pre>
      </section>
    </>
  );
}

function Head({ job, live, retried, again }: { job: Job; live: Live; retried: () => void; again: () => void }) {
  const path = `/batch/jobs/${job.id}`;
  const final = FINAL.has(job.status);
  return (
    <>
      <div class="row">
        <h1>{job.name}</h1>
        <span aria-live="polite">
          <Status of={job.status} />
        </span>
        <Why job={job} />
      </div>
      <div class="row">
        {!final && <Sure label="Cancel" ask="Cancel this job? What is committed stays, and a retry goes on from there." act={() => send("POST", `${path}/cancel`).then(again)} />}
        {(job.status === "FAILED" || job.status === "CANCELLED") && (
          <Sure danger={false} label="Retry" ask="Go on from what was committed? Failed inputs are tried again." act={() => send("POST", `${path}/retry`).then(retried)} />
        )}
        {final && <Sure label="Delete" ask="Delete this job with its outputs, events and checkpoints? The files it read stay." act={() => send("DELETE", path).then(() => go("#/jobs"))} />}
        <a class="button" href={`#/new?clone=${encodeURIComponent(job.id)}`}>
          Clone
        </a>
        <small class={`connection ${live.connection}`} role="status">
          {{ connecting: "connecting…", live: "live", lost: "connection lost; it will go on where it was", over: "" }[live.connection]}
        </small>
      </div>
      <dl class="facts">
        <Fact name="Pipeline" value={`${job.pipeline_key} ${job.pipeline_version}`} />
        <Fact name="Id" value={job.id} />
        <Fact name="Queue" value={`${job.queue}, priority ${job.priority}`} />
        <dt>Created</dt>
        <dd>
          <When time={job.created_at} />
        </dd>
        <Fact name="Ran" value={took(job)} />
        {job.preemption_count > 0 && <Fact name="Preempted" value={`${job.preemption_count}×`} />}
        {job.retry_count > 0 && <Fact name="Retries" value={String(job.retry_count)} />}
      </dl>
    </>
  );
}

function Fact({ name, value }: { name: string; value: string }) {
  return (
    <>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </>
  );
}

function Failure({ job }: { job: Job }) {
  if (!job.error) return null;
  return (
    <section class="problem" aria-label="What went wrong">
      <h2>What went wrong</h2>
      <p>
        <code>{job.error.code}</code> {job.error.message}
      </p>
      <p>{advice(job.error.code)}</p>
    </section>
  );
}

function Overall({ job, live }: { job: Job; live: Live }) {
  const { pending, processing, completed, failed } = job.input_progress;
  const all = pending + processing + completed + failed;
  const parts = processing > 0 ? [...live.partial.values()].reduce((sum, one) => sum + one, 0) : 0;
  const done = job.status === "COMPLETED" ? 1 : all > 0 ? Math.min(1, (completed + failed + parts) / all) : 0;
  const samples = useRef<Sample[]>([]);
  const left = useMemo(() => {
    if (job.status !== "RUNNING") samples.current = [];
    else samples.current = sampled(samples.current, { at: Date.now(), done });
    return eta(samples.current);
  }, [done, job.status, live.turn]);
  if (all === 0) return null;
  const first = samples.current[0];
  const newest = samples.current.at(-1);
  const pace = first && newest && newest.at > first.at ? ((newest.done - first.done) * all * 60_000) / (newest.at - first.at) : 0;
  return (
    <section aria-label="Progress" class="overall">
      <Bar done={done} failed={failed} label="Progress of the job" />
      <p>
        {count(completed)} of {count(all)} inputs completed
        {processing > 0 && `, ${count(processing)} under way`}
        {failed > 0 && <strong>, {count(failed)} failed</strong>}
        {job.status === "RUNNING" && pace > 0 && ` · ${figure(pace)} inputs a minute`}
        {job.status === "RUNNING" && left !== null && done < 1 && ` · about ${duration(left)} to go`}
      </p>
    </section>
  );
}

// --- what the stream brings ---------------------------------------------------------------------------

function useLive(path: string, id: string, run: number, changed: () => void): { live: Live; error: Error | null } {
  const [live, setLive] = useState<Live>(QUIET);
  const [error, setError] = useState<Error | null>(null);
  const last = useRef("");
  useEffect(() => {
    const stop = new AbortController();
    const waiting: Message[] = [];
    const flush = () => {
      const messages = waiting.splice(0);
      if (messages.length === 0) return;
      setLive((now) => heard(now, messages));
      if (messages.some((one) => one.event === "event" && one.data.includes('"job.'))) changed();
    };
    const timer = setInterval(flush, FLUSH);
    const listen = async () => {
      if (last.current === "") {
        const begun = await beginning(path, stop.signal);
        last.current = begun.cursor;
        setLive((now) => ({ ...now, partial: begun.partial }));
        before(path, begun.event, stop.signal).then(
          (story) => setLive((now) => ({ ...now, story: told(story, now.later ?? []), later: null })),
          (failed: Error) => stop.signal.aborted || setError(failed),
        );
      }
      const state = (connection: Connection) => {
        if (connection === "over") flush();
        setLive((now) => ({ ...now, connection }));
        if (connection === "over") changed();
      };
      last.current = await follow(`${path}/stream`, last.current, (message) => waiting.push(message), state, stop.signal);
    };
    listen().catch((failed: Error) => stop.signal.aborted || setError(failed));
    return () => {
      stop.abort();
      clearInterval(timer);
    };
  }, [id, run]);
  return { live, error };
}

/** Where in the stream to go on from, and the inputs under way there. */
async function beginning(path: string, signal: AbortSignal): Promise<{ cursor: string; event: number; partial: Map<string, number> }> {
  const [events, entries] = await Promise.all([
    get<EventList>(`${path}/events`, { limit: 1 }, signal),
    get<ProgressList>(`${path}/progress`, { order: "desc", limit: 1 }, signal),
  ]);
  const event = events.events[0]?.id ?? 0;
  const inputs = await get<InputProgressList>(`${path}/inputs/progress`, { status: "processing", limit: MOST }, signal);
  const partial = new Map<string, number>();
  for (const { input, latest_progress } of inputs.items) if (latest_progress) advanced(partial, input.id, latest_progress);
  return { cursor: `e${event}.p${entries.entries[0]?.id ?? 0}`, event, partial };
}

/** The time line up to this event, while the page is live already. Of very long logs the first and the last part. */
async function before(path: string, event: number, signal: AbortSignal): Promise<Story> {
  let story = BEGINNING;
  for (let offset = 0; offset < event; offset += MOST) {
    if (offset === MOST && event > TOLD_MOST) offset = event - TOLD_MOST;
    const page = await get<EventList>(`${path}/events`, { order: "asc", offset, limit: Math.min(MOST, event - offset) }, signal);
    story = told(story, page.events);
  }
  return story;
}

function advanced(partial: Map<string, number>, input: string, entry: Progress): void {
  const percent = entry.metrics["percent_complete"];
  if (typeof percent !== "number") return;
  if (percent >= 100) partial.delete(input);
  else partial.set(input, percent / 100);
}

const OF_TIME = new Set<string>(TOLD);

export function heard(now: Live, messages: readonly Message[]): Live {
  const events: JobEvent[] = [];
  const partial = new Map(now.partial);
  for (const message of messages) {
    if (message.event === "event") {
      const event = JSON.parse(message.data) as JobEvent;
      events.push(event);
      if (event.input_id && /^(inference|preparation|training)\.(success|failed)$/.test(event.event_type)) partial.delete(event.input_id);
    } else if (message.event === "progress") {
      const entry = JSON.parse(message.data) as Progress;
      if (entry.input_id) advanced(partial, entry.input_id, entry);
    }
  }
  return {
    ...now,
    partial,
    story: now.later ? now.story : told(now.story, events),
    later: now.later && [...now.later, ...events.filter((one) => OF_TIME.has(one.event_type))],
    events: events.length ? [...events.reverse(), ...now.events].slice(0, KEPT) : now.events,
    turn: now.turn + 1,
  };
}

