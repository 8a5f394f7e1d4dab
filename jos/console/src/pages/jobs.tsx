// All jobs, one page of them at a time: the server filters, searches and counts, so 100,000 are as good as ten.
import { useEffect, useState } from "preact/hooks";
import { get } from "../api";
import { count, duration } from "../format";
import { Bar, Empty, Pager, Problem, Status, When } from "../parts";
import { usePoll } from "../poll";
import { go, link } from "../route";
import { FINAL, STATUSES, type Job, type JobList } from "../wire";

const PAGE = 50;
const LIVE = 2000; // ms
const SEARCHING = 10_000; // a search looks at every job

export function JobsPage({ query }: { query: URLSearchParams }) {
  const status = query.getAll("status");
  const type = query.get("type") ?? "";
  const q = query.get("q") ?? "";
  const offset = Number(query.get("offset")) || 0;
  const change = (next: Record<string, string | string[]>) => {
    const all: Record<string, string | string[]> = { status, type, q, ...next };
    const pairs = new URLSearchParams();
    for (const [name, value] of Object.entries(all)) for (const one of [value].flat()) if (one && one !== "0") pairs.append(name, one);
    go(`#/jobs?${pairs}`);
  };
  const asked = { status, pipeline_type: type, q, offset, limit: PAGE };
  const { value, error, again } = usePoll((signal) => get<JobList>("/batch/jobs", asked, signal), q ? SEARCHING : LIVE, [query.toString()]);
  return (
    <>
      <div class="row">
        <h1>Jobs</h1>
        <a class="button primary" href="#/new">
          New job
        </a>
      </div>
      <div class="row filters" role="search">
        <Search value={q} set={(text) => change({ q: text })} />
        <label>
          Type{" "}
          <select value={type} onChange={(event) => change({ type: event.currentTarget.value })}>
            <option value="">all</option>
            <option>batch</option>
            <option>training</option>
          </select>
        </label>
        <fieldset>
          <legend class="hidden">Status</legend>
          {STATUSES.map((one) => (
            <label key={one} class="chip">
              <input
                type="checkbox"
                checked={status.includes(one)}
                onChange={() => change({ status: status.includes(one) ? status.filter((s) => s !== one) : [...status, one] })}
              />
              {one}
            </label>
          ))}
        </fieldset>
      </div>
      <Problem error={error}>
        <button type="button" onClick={again}>Try again</button>
      </Problem>
      {!value && !error && <p role="status">Loading…</p>}
      {value?.total === 0 && <Empty>{q || type || status.length ? "No job fits these filters." : "No job yet. Start one with New job."}</Empty>}
      {value && value.total > 0 && value.jobs.length === 0 && <Empty>There are only {count(value.total)} jobs here.</Empty>}
      {value && value.jobs.length > 0 && <Table jobs={value.jobs} />}
      {value && <Pager what="jobs" total={value.total} offset={offset} limit={PAGE} set={(to) => change({ offset: String(to) })} />}
    </>
  );
}

function Search({ value, set }: { value: string; set: (text: string) => void }) {
  const [text, setText] = useState(value);
  useEffect(() => setText(value), [value]);
  return (
    <form onSubmit={(event) => (event.preventDefault(), set(text.trim()))}>
      <label class="hidden" for="search">
        Search jobs
      </label>
      <input id="search" type="search" maxLength={255} placeholder="Name, pipeline or id" value={text} onInput={(event) => setText(event.currentTarget.value)} />
      <button>Search</button>
    </form>
  );
}

function Table({ jobs }: { jobs: Job[] }) {
  return (
    <table class="cards">
      <caption class="hidden">Jobs, newest first</caption>
      <thead>
        <tr>
          <th scope="col">Name</th>
          <th scope="col">Pipeline</th>
          <th scope="col">Status</th>
          <th scope="col">Inputs</th>
          <th scope="col">Created</th>
          <th scope="col">Took</th>
        </tr>
      </thead>
      <tbody>
        {jobs.map((job) => (
          <tr key={job.id}>
            <td>
              <a href={link("jobs", job.id)}>{job.name}</a>
            </td>
            <td>
              {job.pipeline_key} <small>{job.pipeline_version}</small>
            </td>
            <td>
              <Status of={job.status} />
              <Why job={job} />
            </td>
            <td>
              <Inputs job={job} />
            </td>
            <td>
              <When time={job.created_at} />
            </td>
            <td>{took(job)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** Why a job waits, and its place in the queue. */
export function Why({ job }: { job: Job }) {
  if (!job.waiting && !job.queue_position) return job.preemption_count > 0 && !FINAL.has(job.status) ? <small> preempted {job.preemption_count}×</small> : null;
  return (
    <small class="why">
      {job.queue_position ? ` ${count(job.queue_position)} of ${count(job.queue_depth ?? job.queue_position)} in ${job.queue}. ` : " "}
      {job.waiting ? job.waiting.message || job.waiting.code : ""}
    </small>
  );
}

function Inputs({ job }: { job: Job }) {
  const { pending, processing, completed, failed } = job.input_progress;
  const all = pending + processing + completed + failed;
  if (all === 0) return <>–</>;
  return (
    <>
      <Bar done={(completed + failed) / all} failed={failed} label={`Inputs of ${job.name}`} />
      <small>
        {" "}
        {count(completed + failed)}/{count(all)}
        {failed > 0 && <strong> {count(failed)} failed</strong>}
      </small>
    </>
  );
}

export function ended(job: Job): string | null {
  return job.completed_at ?? job.failed_at ?? job.cancelled_at ?? null;
}

export function took(job: Job): string {
  if (!job.started_at) return "–";
  const end = FINAL.has(job.status) ? ended(job) : null;
  return duration(((end ? Date.parse(end) : Date.now()) - Date.parse(job.started_at)) / 1000);
}
