// What each queue may use and does use, over all organisations, as the server counts it; and one's own jobs in it: which
// run, which wait and why.
import { get } from "../api";
import { amounts, count } from "../format";
import { Bar, Empty, Problem, When } from "../parts";
import { usePoll } from "../poll";
import { link } from "../route";
import type { Job, JobList, QueueUse, QueueUseList } from "../wire";
import { Why } from "./jobs";

const LIVE = 3000;
const MOST = 50; // of one's own jobs of each kind that are shown

async function look(signal: AbortSignal): Promise<{ queues: QueueUseList; waiting: JobList; running: JobList }> {
  const [queues, waiting, running] = await Promise.all([
    get<QueueUseList>("/batch/queues", { limit: 1000 }, signal),
    get<JobList>("/batch/jobs", { status: "PENDING", limit: MOST }, signal),
    get<JobList>("/batch/jobs", { status: ["ADMITTED", "RUNNING", "PREEMPTED"], limit: MOST }, signal),
  ]);
  return { queues, waiting, running };
}

export function QueuesPage() {
  const { value, error } = usePoll(look, LIVE, []);
  if (!value) return error ? <Problem error={error} /> : <p role="status">Loading…</p>;
  const { queues, waiting, running } = value;
  const names = [...new Set([...waiting.jobs, ...running.jobs].map((job) => job.queue))].sort();
  return (
    <>
      <h1>Queues</h1>
      <Problem error={error} />
      <Uses queues={queues.queues} />
      <h2>Your jobs</h2>
      <p>
        {count(running.total)} with capacity, {count(waiting.total)} <a href="#/jobs?status=PENDING">waiting</a>.
        {(waiting.total > MOST || running.total > MOST) && ` The newest ${MOST} of each are shown.`}
      </p>
      {names.length === 0 && <Empty>Nothing of yours waits or runs.</Empty>}
      {names.map((name) => (
        <Queue key={name} name={name} waiting={of(waiting, name)} running={of(running, name)} />
      ))}
    </>
  );
}

function Uses({ queues }: { queues: QueueUse[] }) {
  return (
    <table class="cards">
      <caption>All organisations</caption>
      <thead>
        <tr>
          <th scope="col">Queue</th>
          <th scope="col">Used of its quota</th>
          <th scope="col">Running</th>
          <th scope="col">Waiting</th>
        </tr>
      </thead>
      <tbody>
        {queues.map((queue) => (
          <tr key={queue.name}>
            <td>
              {queue.name} {queue.stopped && <strong>stopped</strong>}
              {queue.cohort && <small class="why">lends and borrows in {queue.cohort}</small>}
            </td>
            <td>
              {amounts(queue.quota, queue.used).map(({ name, text, share }) => (
                <div key={name} class="row">
                  <span>
                    {name} {text}
                  </span>
                  {share !== null && <Bar done={share} label={`${name} of ${queue.name}`} />}
                  {share !== null && share > 1 && <small>borrows</small>}
                </div>
              ))}
              {Object.keys(queue.quota).length === 0 && <small>no quota</small>}
            </td>
            <td>{count(queue.running)} running</td>
            <td>{count(queue.waiting)} waiting</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function of(list: JobList, queue: string): Job[] {
  return list.jobs.filter((job) => job.queue === queue).sort((a, b) => (a.queue_position ?? 0) - (b.queue_position ?? 0));
}

function Queue({ name, waiting, running }: { name: string; waiting: Job[]; running: Job[] }) {
  return (
    <section aria-label={`Your jobs of queue ${name}`}>
      <h3>{name || "no queue"}</h3>
      <table class="cards">
        <caption class="hidden">Your jobs of queue {name}</caption>
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
