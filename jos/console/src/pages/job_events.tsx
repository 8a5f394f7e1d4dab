// A job's events, filtered and paged by the server; the first page goes on by itself as the stream brings more.
import { useState } from "preact/hooks";
import { get } from "../api";
import { clock, day } from "../format";
import { Empty, Pager, Problem } from "../parts";
import { usePoll } from "../poll";
import type { EventList, Job, JobEvent } from "../wire";
import type { Live } from "./job";

const PAGE = 50;
const LEVELS = ["INFO", "WARN", "ERROR", "SUCCESS", "FAILED"];

export function Events({ job, live }: { job: Job; live: Live }) {
  const [level, setLevel] = useState("");
  const [type, setType] = useState("");
  const [offset, setOffset] = useState(0);
  const path = `/batch/jobs/${job.id}/events`;
  const { value, error } = usePoll((signal) => get<EventList>(path, { level, event_type: type.trim(), offset, limit: PAGE }, signal), 0, [job.id, level, type, offset]);
  const newest = value?.events[0]?.id ?? 0;
  const fits = (event: JobEvent) => (!level || event.level === level) && (!type.trim() || event.event_type === type.trim());
  const fresh = value && offset === 0 ? live.events.filter((event) => event.id > newest && fits(event)) : [];
  const shown = [...fresh, ...(value?.events ?? [])].slice(0, PAGE);
  const total = (value?.total ?? 0) + fresh.length;
  return (
    <section aria-label="Events">
      <h2>Events</h2>
      <div class="row filters">
        <label>
          Level{" "}
          <select value={level} onChange={(event) => (setLevel(event.currentTarget.value), setOffset(0))}>
            <option value="">all</option>
            {LEVELS.map((one) => (
              <option key={one}>{one}</option>
            ))}
          </select>
        </label>
        <label>
          Type{" "}
          <input placeholder="such as index.lost" value={type} onChange={(event) => (setType(event.currentTarget.value), setOffset(0))} />
        </label>
      </div>
      <Problem error={error} />
      {value && shown.length === 0 && <Empty>No event fits.</Empty>}
      {shown.length > 0 && (
        <table class="cards events">
          <caption class="hidden">Events, newest first</caption>
          <thead>
            <tr>
              <th scope="col">Time</th>
              <th scope="col">Type</th>
              <th scope="col">Message</th>
            </tr>
          </thead>
          <tbody>
            {shown.map((event) => (
              <tr key={event.id} class={`level-${event.level.toLowerCase()}`}>
                <td>
                  <time dateTime={event.created_at} title={day(event.created_at)}>
                    {clock(event.created_at)}
                  </time>
                </td>
                <td>
                  {event.event_type} {event.level !== "INFO" && <small>{event.level}</small>}
                </td>
                <td>
                  {event.message}
                  {event.index !== null && event.index !== undefined && <small> index {event.index}</small>}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      <Pager what="events" total={total} offset={offset} limit={PAGE} set={setOffset} />
    </section>
  );
}
