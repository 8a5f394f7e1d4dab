// What went into a job and what came out, page by page; outputs also while it runs.
import { useState } from "preact/hooks";
import { get, here } from "../api";
import { bytes } from "../format";
import { Bar, Empty, Pager, Problem, Status } from "../parts";
import { usePoll } from "../poll";
import { Preview, type Source } from "../preview";
import type { Input, InputList, InputProgressList, Job, Output, OutputList, Progress } from "../wire";

const PAGE = 20;
const LIVE = 3000;

type Row = { input: Input; latest: Progress | null };

/** Tracked inputs with how far they are; `reference` are those that are only given to workers. */
async function inputs(job: Job, status: string, offset: number, signal: AbortSignal): Promise<{ total: number; rows: Row[] }> {
  const path = `/batch/jobs/${job.id}/inputs`;
  if (status === "reference") {
    const found = await get<InputList>(path, { status, offset, limit: PAGE }, signal);
    return { total: found.total, rows: found.inputs.map((input) => ({ input, latest: null })) };
  }
  const found = await get<InputProgressList>(`${path}/progress`, { status, offset, limit: PAGE }, signal);
  return { total: found.total, rows: found.items.map((one) => ({ input: one.input, latest: one.latest_progress ?? null })) };
}

export function Inputs({ job, live }: { job: Job; live: boolean }) {
  const [status, setStatus] = useState("");
  const [offset, setOffset] = useState(0);
  const { value, error } = usePoll((signal) => inputs(job, status, offset, signal), live ? LIVE : 0, [job.id, status, offset, live]);
  return (
    <section aria-label="Inputs">
      <div class="row">
        <h2>Inputs</h2>
        <label>
          Status{" "}
          <select value={status} onChange={(event) => (setStatus(event.currentTarget.value), setOffset(0))}>
            <option value="">all that count</option>
            {["pending", "processing", "completed", "failed", "reference"].map((one) => (
              <option key={one}>{one}</option>
            ))}
          </select>
        </label>
      </div>
      <Problem error={error} />
      {value?.total === 0 && <Empty>No input fits.</Empty>}
      {value && value.rows.length > 0 && (
        <table class="cards">
          <caption class="hidden">Inputs</caption>
          <thead>
            <tr>
              <th scope="col">File</th>
              <th scope="col">Port</th>
              <th scope="col">Status</th>
              <th scope="col">Size</th>
            </tr>
          </thead>
          <tbody>
            {value.rows.map(({ input, latest }) => (
              <InputRow key={input.id} input={input} latest={latest} />
            ))}
          </tbody>
        </table>
      )}
      {value && <Pager what="inputs" total={value.total} offset={offset} limit={PAGE} set={setOffset} />}
    </section>
  );
}

function InputRow({ input, latest }: Row) {
  const percent = latest?.metrics["percent_complete"];
  const label = input.data?.metadata["class"];
  return (
    <tr>
      <td>
        {input.data?.filename ?? input.file_id ?? input.id} {typeof label === "string" && <small>class {label}</small>}
      </td>
      <td>{input.port_name}</td>
      <td>
        <Status of={input.status} />
        {input.status === "processing" && typeof percent === "number" && <Bar done={percent / 100} label={`Progress of ${input.data?.filename ?? input.id}`} />}
        {input.error_message && <small class="why"> {input.error_message}</small>}
      </td>
      <td>{input.data ? bytes(input.data.num_bytes) : "–"}</td>
    </tr>
  );
}

export function Outputs({ job, live }: { job: Job; live: boolean }) {
  const [offset, setOffset] = useState(0);
  const [seen, setSeen] = useState<Source | null>(null);
  const path = `/batch/jobs/${job.id}/outputs`;
  const { value, error, again } = usePoll((signal) => get<OutputList>(path, { offset, limit: PAGE, links: "api" }, signal), live ? LIVE : 0, [job.id, offset, live]);
  // links are good for an hour and the page may be open for longer: ask for new ones when one is about to be wanted
  const fresh = (output: Output) => Date.parse(output.expires_at) < Date.now() + 60_000 && again();
  return (
    <section aria-label="Outputs">
      <h2>Outputs</h2>
      <Problem error={error} />
      {value?.total === 0 && <Empty>{live ? "None yet; they appear here while the job runs." : "None."}</Empty>}
      {value && value.outputs.length > 0 && (
        <table class="cards">
          <caption class="hidden">Outputs</caption>
          <thead>
            <tr>
              <th scope="col">File</th>
              <th scope="col">Of</th>
              <th scope="col">Size</th>
              <th scope="col">
                <span class="hidden">Do</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {value.outputs.map((output) => (
              <tr key={output.id}>
                <td>{output.data.filename}</td>
                <td>{output.input_file_id ?? output.port_name}</td>
                <td>{bytes(output.data.num_bytes)}</td>
                <td class="row">
                  <a class="button small" href={here(output.data.ref)} aria-label={`Download ${output.data.filename}`} onPointerEnter={() => fresh(output)} onFocus={() => fresh(output)}>
                    Download
                  </a>
                  <button type="button" class="small" aria-label={`Preview ${output.data.filename}`} onClick={() => setSeen({ name: output.data.filename, bytes: output.data.num_bytes, results: true, path: `${path}/${encodeURIComponent(output.id)}/content` })}>
                    Preview
                  </button>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {value && <Pager what="outputs" total={value.total} offset={offset} limit={PAGE} set={setOffset} />}
      {seen && <Preview source={seen} close={() => setSeen(null)} />}
    </section>
  );
}
