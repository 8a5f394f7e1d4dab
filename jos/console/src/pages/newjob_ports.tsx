// The files of one port: dropped, or chosen among those that are there; of a port of examples each with its class.
import { useEffect, useState } from "preact/hooks";
import { Drop } from "../drop";
import { table } from "../csv";
import { fileAt, head, Rows } from "../preview";
import { usePoll } from "../poll";
import { newestFiles } from "./files";
import type { Json } from "../wire";

export interface Ref {
  id: string; // of a file or a checkpoint
  label: string; // its class, where the port wants one
}

const NEWEST = 200; // offered; any other can be typed
const MOST = 200; // shown of a port's files

export function Port({ port, spec, refs, set, says, columns }: { port: string; spec: Json; refs: Ref[]; set: (change: (now: Ref[]) => Ref[]) => void; says: string; columns: (names: string[]) => void }) {
  const mode = spec["mode"];
  const labelled = mode === "n_shot_file_list";
  const checkpoint = mode === "checkpoint";
  const add = (id: string) => set((now) => (id && !now.some((one) => one.id === id) ? [...now, { id, label: labelled ? guess(id) : "" }] : now));
  const csv = !checkpoint && spec["distribute"] === "scatter" ? refs.find((one) => /\.csv$/i.test(one.id))?.id : undefined;
  return (
    <fieldset class="port" aria-invalid={says ? "true" : undefined} tabIndex={says ? -1 : undefined}>
      <legend>
        {port} {spec["required"] === true && <small>required</small>}
      </legend>
      {typeof spec["description"] === "string" && <p class="prose">{spec["description"]}</p>}
      {says && <p class="wrong">{says}</p>}
      {!checkpoint && <Drop label={`Upload files for ${port}`} done={add} />}
      <Pick port={port} add={add} checkpoint={checkpoint} />
      <ul class="refs">
        {refs.slice(0, MOST).map((ref) => (
          <li key={ref.id} class="row">
            <span>{ref.id}</span>
            {labelled && (
              <label>
                Class{" "}
                <input value={ref.label} aria-label={`Class of ${ref.id}`} onInput={(event) => {
                  const label = event.currentTarget.value;
                  set((now) => now.map((one) => (one.id === ref.id ? { ...one, label } : one)));
                }} />
              </label>
            )}
            <button type="button" class="small" aria-label={`Take out ${ref.id}`} onClick={() => set((now) => now.filter((one) => one.id !== ref.id))}>
              Take out
            </button>
          </li>
        ))}
      </ul>
      {refs.length > MOST && <p>and {refs.length - MOST} more</p>}
      {csv && <Peek name={csv} columns={columns} />}
    </fieldset>
  );
}

/** `pump_7_idle.csv` is an example of `idle`, as likely as not. */
export function guess(name: string): string {
  const stem = name.replace(/\.[^.]*$/, "");
  return stem.split(/[_\s-]+/).findLast((part) => part && !/^\d+$/.test(part)) ?? "";
}

function Pick({ port, add, checkpoint }: { port: string; add: (id: string) => void; checkpoint: boolean }) {
  const [text, setText] = useState("");
  const { value } = usePoll((signal) => (checkpoint ? Promise.resolve(null) : newestFiles(NEWEST, "", signal)), 0, [checkpoint]);
  const list = `${port}-files`;
  const enter = () => {
    add(text.trim());
    setText("");
  };
  return (
    <p class="row">
      <label>
        {checkpoint ? "Checkpoint id " : "Uploaded file "}
        <input
          list={list}
          value={text}
          placeholder={checkpoint ? "ckp_…" : "its name"}
          aria-label={checkpoint ? `Checkpoint for ${port}` : `Uploaded file for ${port}`}
          onInput={(event) => setText(event.currentTarget.value)}
          onKeyDown={(event) => event.key === "Enter" && (event.preventDefault(), enter())}
        />
      </label>
      <datalist id={list}>
        {value?.data.map((file) => (
          <option key={file.file_uid} value={file.file_id} />
        ))}
      </datalist>
      <button type="button" aria-label={`Add to ${port}`} onClick={enter}>
        Add
      </button>
    </p>
  );
}

/** The first rows of the port's first CSV, whose columns the form then offers. */
function Peek({ name, columns }: { name: string; columns: (names: string[]) => void }) {
  const [text, setText] = useState("");
  useEffect(() => {
    const stop = new AbortController();
    head({ path: fileAt(name), bytes: 1 }, stop.signal).then(
      (found) => {
        setText(found);
        columns(table(found, 1, false).header);
      },
      () => undefined, // a name that is no file is told when the job is created
    );
    return () => stop.abort();
  }, [name]);
  if (!text) return null;
  return (
    <details>
      <summary>First rows of {name}</summary>
      <Rows text={text} whole={false} rows={8} />
    </details>
  );
}
