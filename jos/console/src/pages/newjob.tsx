// A new job: a pipeline, its files port by port, and a form made of what its schema says may be set. What the server
// finds wrong stands beside the field it is about.
import { useEffect, useMemo, useState } from "preact/hooks";
import { ApiError, get, send } from "../api";
import { Problem } from "../parts";
import { usePoll } from "../poll";
import { go, link } from "../route";
import { at, configOf, fields, jsonPath, placed, textOf, valueOf, type Field } from "../schema";
import type { Input, InputList, Job, Json, Pipeline, PipelineList } from "../wire";
import type { Request } from "../compose";
import { Configuration } from "./newjob_form";
import { AsCode } from "./newjob_code";
import { Port, type Ref } from "./newjob_ports";

export interface Entry {
  text: string;
  set: boolean; // by a person; else the pipeline's default runs
}

export interface Draft {
  name: string;
  version: string; // "" = the newest published
  refs: Record<string, Ref[]>; // by port
  entries: Record<string, Entry>; // by JSON path
  parallelism: Record<string, string>; // by component
  priority: string;
}

export interface Made {
  request: Request;
  wrong: Map<string, string>; // JSON path -> why its text is no value
}

export function NewJobPage({ query }: { query: URLSearchParams }) {
  const clone = query.get("clone");
  const { value, error } = usePoll((signal) => begin(clone, signal), 0, [clone]);
  if (!value) return error ? <Problem error={error} /> : <p role="status">Loading…</p>;
  return <Choose pipelines={value.pipelines} cloned={value.cloned} wanted={query.get("pipeline")} />;
}

interface Cloned {
  job: Job;
  inputs: Input[];
}

async function begin(clone: string | null, signal: AbortSignal): Promise<{ pipelines: Pipeline[]; cloned: Cloned | null }> {
  const all = await get<PipelineList>("/batch/registry/pipelines", { limit: 1000 }, signal);
  const pipelines = all.pipelines.filter((one) => one.status === "published" || one.status === "draft");
  if (!clone) return { pipelines, cloned: null };
  const path = `/batch/jobs/${encodeURIComponent(clone)}`;
  const [job, inputs] = await Promise.all([get<Job>(path, {}, signal), get<InputList>(`${path}/inputs`, { limit: 1000 }, signal)]);
  if (inputs.total > inputs.inputs.length) inputs.inputs.length = 0; // too many for a form: chosen anew
  return { pipelines, cloned: { job, inputs: inputs.inputs } };
}

function Choose({ pipelines, cloned, wanted }: { pipelines: Pipeline[]; cloned: Cloned | null; wanted: string | null }) {
  const keys = [...new Set(pipelines.map((one) => one.pipeline_key))];
  const start = cloned?.job.pipeline_key ?? wanted ?? keys[0] ?? "";
  const [key, setKey] = useState(keys.includes(start) ? start : (keys[0] ?? ""));
  const [version, setVersion] = useState(cloned && cloned.job.pipeline_key === key ? cloned.job.pipeline_version : "");
  const versions = pipelines.filter((one) => one.pipeline_key === key);
  const newest = versions.find((one) => one.status === "published");
  const pipeline = version ? versions.find((one) => one.pipeline_version === version) : (newest ?? versions[0]);
  if (!pipeline) return <p>There is no pipeline to run. An administrator can publish one.</p>;
  return (
    <>
      <h1>{cloned ? `New job like ${cloned.job.name}` : "New job"}</h1>
      <div class="row">
        <label>
          Pipeline{" "}
          <select value={key} onChange={(event) => (setKey(event.currentTarget.value), setVersion(""))}>
            {keys.map((one) => (
              <option key={one}>{one}</option>
            ))}
          </select>
        </label>
        <label>
          Version{" "}
          <select value={version} onChange={(event) => setVersion(event.currentTarget.value)}>
            {newest && <option value="">newest: {newest.pipeline_version}</option>}
            {versions.map((one) => (
              <option key={one.id} value={one.pipeline_version}>
                {one.pipeline_version} {one.status === "draft" ? "(draft)" : ""}
              </option>
            ))}
          </select>
        </label>
      </div>
      <p class="prose">{pipeline.description}</p>
      <Form key={pipeline.id} pipeline={pipeline} version={version || (pipeline.status === "draft" ? pipeline.pipeline_version : "")} cloned={cloned?.job.pipeline_key === key ? cloned : null} />
    </>
  );
}

export function formOf(pipeline: Pipeline): Record<string, Field[]> {
  const found: Record<string, Field[]> = {};
  for (const [component, standard] of Object.entries(pipeline.default_config)) {
    found[component] = fields((pipeline.config_schema[component] ?? {}) as Json, (pipeline.user_config_schema[component] ?? {}) as Json, standard["config"]);
  }
  return found;
}

function drafted(pipeline: Pipeline, form: Record<string, Field[]>, cloned: Cloned | null): Draft {
  const entries: Record<string, Entry> = {};
  const parallelism: Record<string, string> = {};
  for (const [component, some] of Object.entries(form)) {
    const ran = (cloned?.job.parameters[component] ?? {}) as { parallelism?: number; config?: Json };
    parallelism[component] = String(ran.parallelism ?? pipeline.default_config[component]?.["parallelism"] ?? 1);
    for (const field of some) {
      const value = cloned ? at(ran.config, field.path) : undefined;
      const differs = value !== undefined && JSON.stringify(value) !== JSON.stringify(field.standard);
      entries[jsonPath(component, field.path)] = { text: textOf(field.kind, differs ? value : field.standard), set: differs && !field.locked };
    }
  }
  const refs: Record<string, Ref[]> = {};
  for (const port of Object.keys(pipeline.inputs)) {
    refs[port] = (cloned?.inputs ?? []).filter((one) => one.port_name === port && one.file_id).map((one) => ({ id: one.file_id!, label: String(one.data?.metadata["class"] ?? "") }));
  }
  return { name: cloned?.job.name ?? "", version: "", refs, entries, parallelism, priority: cloned ? String(cloned.job.priority) : "" };
}

/** The request that the form stands for. */
export function made(pipeline: Pipeline, form: Record<string, Field[]>, draft: Draft, version: string): Made {
  const wrong = new Map<string, string>();
  const parameters: Record<string, Json> = {};
  for (const [component, some] of Object.entries(form)) {
    const set = some.map((field) => {
      const path = jsonPath(component, field.path);
      const entry = draft.entries[path];
      if (field.locked || !entry?.set) return [field.path, undefined] as const;
      try {
        return [field.path, valueOf(field, entry.text)] as const;
      } catch (error) {
        wrong.set(path, (error as Error).message);
        return [field.path, undefined] as const;
      }
    });
    parameters[component] = { parallelism: Number(draft.parallelism[component]) || 1, config: configOf(set) };
  }
  const inputs: Record<string, Json[]> = {};
  for (const [port, refs] of Object.entries(draft.refs)) {
    if (refs.length === 0) continue;
    const checkpoints = pipeline.inputs[port]?.["mode"] === "checkpoint";
    inputs[port] = refs.map(({ id, label }) => ({ ...(checkpoints ? { kind: "checkpoint", checkpoint_id: id } : { file_id: id }), ...(label ? { metadata: { class: label } } : {}) }));
  }
  const request: Request = { name: draft.name, pipeline_type: pipeline.pipeline_type, pipeline_key: pipeline.pipeline_key, inputs, parameters };
  if (version) request.pipeline_version = version;
  if (draft.priority.trim() !== "") request.priority = Number(draft.priority);
  return { request, wrong };
}

function Form({ pipeline, version, cloned }: { pipeline: Pipeline; version: string; cloned: Cloned | null }) {
  const form = useMemo(() => formOf(pipeline), [pipeline]);
  const [draft, setDraft] = useState<Draft>(() => drafted(pipeline, form, cloned));
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const [columns, setColumns] = useState<string[]>([]);
  const [once] = useState(() => ({ key: crypto.randomUUID?.() ?? String(Math.random()), body: "" }));
  const { request, wrong } = made(pipeline, form, draft, version);
  const paths = ["$.name", "$.priority", ...Object.keys(draft.entries), ...Object.keys(pipeline.inputs).map(portPath), ...Object.keys(form).map((one) => `$.parameters.${one}.parallelism`)];
  const items = error instanceof ApiError ? placed(error.items, paths) : new Map();
  const says = (path: string): string => [wrong.get(path), ...(items.get(path) ?? []).map((one: { message: string }) => one.message)].filter(Boolean).join(" ");
  const elsewhere = error instanceof ApiError ? new ApiError(error.status, items.get("") ?? []) : error;
  const change = (next: Partial<Draft>) => setDraft((now) => ({ ...now, ...next }));
  useEffect(() => {
    if (error) document.querySelector<HTMLElement>("[aria-invalid=true]")?.focus();
  }, [error]);
  const create = async (event: Event) => {
    event.preventDefault();
    if (wrong.size > 0) return setError(new Error("Some fields hold what is no value; see beside them."));
    setBusy(true);
    const body = JSON.stringify(request);
    if (once.body !== body) Object.assign(once, { body, key: crypto.randomUUID?.() ?? String(Math.random()) }); // pressed again after a lost answer: the same job
    try {
      const job = await send<Job>("POST", "/batch/jobs", request, { "Idempotency-Key": once.key });
      go(link("jobs", job.id));
    } catch (failed) {
      setError(failed as Error);
      setBusy(false);
    }
  };
  return (
    <form class="new-job" onSubmit={create} noValidate>
      <Text label="Name" path="$.name" says={says("$.name")} value={draft.name} set={(name) => change({ name })} />
      <h2>Files</h2>
      {Object.entries(pipeline.inputs).map(([port, spec]) => (
        <Port key={port} port={port} spec={spec} says={says(portPath(port))} refs={draft.refs[port] ?? []} set={(refs) => setDraft((now) => ({ ...now, refs: { ...now.refs, [port]: refs(now.refs[port] ?? []) } }))} columns={setColumns} />
      ))}
      {Object.entries(form).map(([component, some]) => (
        <Configuration key={component} component={component} fields={some} draft={draft} set={setDraft} says={says} columns={columns} />
      ))}
      <Text label="Priority" path="$.priority" says={says("$.priority")} value={draft.priority} set={(priority) => change({ priority })} note={`Whole number; higher goes first. Left empty: ${pipeline.priority}.`} />
      <Problem error={error && (elsewhere instanceof ApiError ? (elsewhere.items.length ? elsewhere : new Error("Some of it does not fit; see beside the fields.")) : elsewhere)} />
      <p class="row">
        <button class="primary" disabled={busy}>
          Start the job
        </button>
      </p>
      <AsCode request={request} />
    </form>
  );
}

export function portPath(port: string): string {
  return `$.inputs["${port}"]`;
}

function Text({ label, path, value, set, says, note }: { label: string; path: string; value: string; set: (text: string) => void; says: string; note?: string }) {
  return (
    <div class="field">
      <label for={path}>{label}</label>
      <input id={path} value={value} maxLength={255} aria-invalid={says ? "true" : undefined} aria-describedby={`${path}-says`} onInput={(event) => set(event.currentTarget.value)} />
      <small id={`${path}-says`}>
        {says && <strong class="wrong">{says} </strong>}
        {note}
      </small>
    </div>
  );
}
