// Throughput of a job, and how a training learns.
import { useMemo } from "preact/hooks";
import { get, here } from "../api";
import { learning, rates } from "../curves";
import { count, figure } from "../format";
import { Plot } from "../plot";
import { usePoll } from "../poll";
import type { CheckpointList, Job, Progress, ProgressList, Traces } from "../wire";

const LIVE = 5000;
const PAGE = 1000;
const MOST_POINTS = 500;
const MOST_ENTRIES = 20_000;

export function Throughput({ job, live }: { job: Job; live: boolean }) {
  const path = `/batch/jobs/${job.id}/inputs/progress/traces`;
  const { value } = usePoll((signal) => get<Traces>(path, { buckets: 120 }, signal), live ? LIVE : 0, [job.id, live]);
  const found = useMemo(() => (value ? rates(value) : null), [value]);
  if (!found || found.kinds.length === 0 || !value?.latest_event_at) return null;
  const words = found.total.map((one) => `${one.name}: ${count(one.success)} done${one.failed ? `, ${count(one.failed)} failed` : ""}`).join("; ");
  const curves = found.kinds.map((kind) => ({ name: `${kind.name} items/s`, values: kind.values }));
  return (
    <section aria-label="Throughput">
      <h2>Throughput</h2>
      <p>{words}</p>
      <Plot x={found.x} curves={curves} time={true} label={`Items a second over time. ${words}`} />
    </section>
  );
}

async function entries(job: Job, signal: AbortSignal): Promise<Progress[]> {
  const found: Progress[] = [];
  while (found.length < MOST_ENTRIES) {
    const page = await get<ProgressList>(`/batch/jobs/${job.id}/progress`, { kind: "training", offset: found.length, limit: PAGE }, signal);
    found.push(...page.entries);
    if (page.entries.length < PAGE) break;
  }
  return found;
}

export function Learning({ job, live }: { job: Job; live: boolean }) {
  const { value } = usePoll((signal) => entries(job, signal), live ? LIVE : 0, [job.id, live]);
  const checkpoints = usePoll((signal) => get<CheckpointList>(`/batch/jobs/${job.id}/checkpoints`, { limit: 100, links: "api" }, signal), live ? LIVE : 0, [job.id, live]);
  const found = useMemo(() => (value ? learning(value, MOST_POINTS) : null), [value]);
  const saved = checkpoints.value?.checkpoints ?? [];
  if (!found || found.x.length === 0) return null;
  const losses = found.metrics.filter((one) => /loss/.test(one.name));
  const scores = found.metrics.filter((one) => !/loss/.test(one.name));
  const words = found.metrics.map((one) => `${one.name} ${figure(one.values.findLast((value) => value !== null) ?? NaN)}`).join(", ");
  return (
    <section aria-label="Training">
      <h2>Training</h2>
      <p>
        After step {count(found.x.at(-1)!)}: {words}
      </p>
      {losses.length > 0 && <Plot x={found.x} curves={losses} time={false} label={`Loss over steps: ${words}`} />}
      {scores.length > 0 && <Plot x={found.x} curves={scores} time={false} label={`Scores over steps: ${words}`} />}
      {saved.length > 0 && (
        <table>
          <caption>Checkpoints</caption>
          <thead>
            <tr>
              <th scope="col">Id</th>
              <th scope="col">Step</th>
              <th scope="col">Scores</th>
              <th scope="col">Model</th>
            </tr>
          </thead>
          <tbody>
            {saved.map((one) => (
              <tr key={one.id}>
                <td>
                  <code>{one.id}</code>
                </td>
                <td>{count(one.step)}</td>
                <td>{Object.entries(one.metrics).map(([name, value]) => `${name} ${typeof value === "number" ? figure(value) : String(value)}`).join(", ")}</td>
                <td>{one.data && <a href={here(one.data.ref)}>Download {one.name}</a>}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </section>
  );
}
