// What waits and why, and what runs, by queue. How many wait in all organisations; which jobs, of one's own.
import { get } from "../api";
import { count } from "../format";
import { Empty, Problem, When } from "../parts";
import { usePoll } from "../poll";
import { link } from "../route";
import type { Job, JobList, QueueList } from "../wire";
import { Why } from "./jobs";

const LIVE = 3000;
const MOST = 200; // jobs of each kind that are looked at

async function look(signal: AbortSignal): Promise<{ depths: QueueList; waiting: JobList; running: JobList }> {
  const [depths, waiting, running] = await Promise.all([
    get<QueueList>("/batch/jobs/queue", {}, signal),
    get<JobList>("/batch/jobs", { status: "PENDING", limit: MOST }, signal),
    get<JobList>("/batch/jobs", { status: ["ADMITTED", "RUNNING", "PREEMPTED"], limit: MOST }, signal),
  ]);
  return { depths, waiting, running };
}

export function QueuesPage() {
  const { value, error } = usePoll(look, LIVE, []);
  if (!value) return error ? <Problem error={error} /> : <p role="status">Loading…</p>;
  const names = [...new Set([...value.waiting.jobs, ...value.running.jobs].map((job) => job.queue))].sort();
  return (
    <>
      <h1>Queues</h1>
      <Problem error={error} />
      <p>
        Waiting over all organisations: {value.depths.queues.map((one) => `${count(one.depth)} ${one.pipeline_type}`).join(", ")}. Yours: {count(value.waiting.total)} waiting,{" "}
        {count(value.running.total)} with capacity.
      </p>
      {names.length === 0 && <Empty>Nothing waits or runs.</Empty>}
      {names.map((name) => (
        <Queue key={name} name={name} waiting={of(value.waiting, name)} running={of(value.running, name)} />
      ))}
      {(value.waiting.total > MOST || value.running.total > MOST) && <p>Only the newest {MOST} jobs of each kind are shown here; see Jobs for all.</p>}
    </>
  );
}

function of(list: JobList, queue: string): Job[] {
  return list.jobs.filter((job) => job.queue === queue).sort((a, b) => (a.queue_position ?? 0) - (b.queue_position ?? 0));
}

function Queue({ name, waiting, running }: { name: string; waiting: Job[]; running: Job[] }) {
  return (
    <section aria-label={`Queue ${name}`}>
      <h2>{name || "no queue"}</h2>
      <table class="cards">
        <caption class="hidden">Jobs of queue {name}</caption>
        <thead>
          <tr>
            <th scope="col">Job</th>
            <th scope="col">Priority</th>
            <th scope="col">Waits because</th>
            <th scope="col">Since</th>
          </tr>
        </thead>
        <tbody>
          {[...running, ...waiting].map((job) => (
            <tr key={job.id}>
              <td>
                <a href={link("jobs", job.id)}>{job.name}</a>
              </td>
              <td>{job.priority}</td>
              <td>{job.status === "PENDING" ? <Why job={job} /> : job.status.toLowerCase()}</td>
              <td>
                <When time={job.status === "PENDING" ? job.created_at : (job.started_at ?? job.updated_at)} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}
