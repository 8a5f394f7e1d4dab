// The configuration of one component, a field for each setting of its schema.
import type { Dispatch, StateUpdater } from "preact/hooks";
import { jsonPath, textOf, valueOf, words, type Field } from "../schema";
import type { Draft, Entry } from "./newjob";

interface Given {
  component: string;
  fields: Field[];
  draft: Draft;
  set: Dispatch<StateUpdater<Draft>>;
  says: (path: string) => string;
  columns: string[];
}

export function Configuration({ component, fields, draft, set, says, columns }: Given) {
  const parallel = `$.parameters.${component}.parallelism`;
  const groups = new Map<string, Field[]>();
  for (const field of fields) {
    const name = field.path.slice(0, -1).join(".");
    groups.set(name, [...(groups.get(name) ?? []), field]);
  }
  return (
    <>
      <h2>Configuration of {component}</h2>
      <div class="field">
        <label for={parallel}>parallelism</label>
        <input
          id={parallel}
          type="number"
          min={1}
          value={draft.parallelism[component]}
          aria-invalid={says(parallel) ? "true" : undefined}
          onInput={(event) => {
            const text = event.currentTarget.value;
            set((now) => ({ ...now, parallelism: { ...now.parallelism, [component]: text } }));
          }}
        />
        <small>
          {says(parallel) && <strong class="wrong">{says(parallel)} </strong>}
          Indexes that work at the same time.
        </small>
      </div>
      {[...groups].map(([name, some]) => (
        <fieldset key={name} class={name ? "group" : "group plain"}>
          <legend class={name ? "" : "hidden"}>{name || component}</legend>
          {some.map((field) => {
            const path = jsonPath(component, field.path);
            return <Setting key={path} field={field} path={path} entry={draft.entries[path]!} says={says(path)} columns={columns} set={(entry) => set((now) => ({ ...now, entries: { ...now.entries, [path]: entry } }))} />;
          })}
        </fieldset>
      ))}
    </>
  );
}

function Setting({ field, path, entry, set, says, columns }: { field: Field; path: string; entry: Entry; set: (entry: Entry) => void; says: string; columns: string[] }) {
  const name = field.path.at(-1)!;
  const reset = () => set({ text: textOf(field.kind, field.standard), set: false });
  return (
    <div class="field">
      <label for={path}>
        {name} {field.required && <small>required</small>} {field.locked && <small>locked</small>}
      </label>
      <Control field={field} path={path} entry={entry} set={set} invalid={Boolean(says)} columns={columns} />
      <small id={`${path}-says`}>
        {says && <strong class="wrong">{says} </strong>}
        {field.description} {field.bounds && <em>{field.bounds}. </em>}
        {field.locked && "Set by the pipeline. "}
        {entry.set && field.standard !== undefined && (
          <button type="button" class="small" onClick={reset} aria-label={`Default of ${name}`}>
            Default: {textOf(field.kind, field.standard)}
          </button>
        )}
      </small>
      {field.kind === "words" && /column/.test(name) && columns.length > 0 && !field.locked && <Columns field={field} entry={entry} set={set} columns={columns} />}
    </div>
  );
}

function Control({ field, path, entry, set, invalid, columns }: { field: Field; path: string; entry: Entry; set: (entry: Entry) => void; invalid: boolean; columns: string[] }) {
  const typed = (text: string) => set({ text, set: true });
  const shared = { id: path, disabled: field.locked, "aria-invalid": invalid ? ("true" as const) : undefined, "aria-describedby": `${path}-says` };
  if (field.kind === "choice" || field.kind === "yes-no") {
    const choices = field.kind === "choice" ? field.choices.map(String) : ["true", "false"];
    return (
      <select {...shared} value={entry.text} onChange={(event) => typed(event.currentTarget.value)}>
        {field.standard === undefined && <option value="">not set</option>}
        {choices.map((one) => (
          <option key={one} value={one}>
            {field.kind === "choice" ? one : one === "true" ? "yes" : "no"}
          </option>
        ))}
      </select>
    );
  }
  if (field.kind === "integer" || field.kind === "number") {
    return <input {...shared} type="number" step={field.kind === "integer" ? 1 : "any"} min={field.least} max={field.most} value={entry.text} placeholder={hint(field)} onInput={(event) => typed(event.currentTarget.value)} />;
  }
  const offers = field.kind === "text" && /column/.test(path) && columns.length > 0;
  return (
    <>
      <input {...shared} value={entry.text} placeholder={hint(field)} list={offers ? `${path}-columns` : undefined} onInput={(event) => typed(event.currentTarget.value)} />
      {offers && (
        <datalist id={`${path}-columns`}>
          {columns.map((one) => (
            <option key={one} value={one} />
          ))}
        </datalist>
      )}
    </>
  );
}

function hint(field: Field): string {
  return field.example === undefined ? "" : `such as ${textOf(field.kind, field.example)}`;
}

/** The columns of the chosen file, to be switched on and off. */
function Columns({ field, entry, set, columns }: { field: Field; entry: Entry; set: (entry: Entry) => void; columns: string[] }) {
  const chosen = entry.set ? words(entry.text) : ((valueOf(field, entry.text) as string[] | undefined) ?? []);
  const toggle = (name: string) => {
    const next = chosen.includes(name) ? chosen.filter((one) => one !== name) : columns.filter((one) => chosen.includes(one) || one === name);
    set({ text: textOf("words", next), set: true });
  };
  return (
    <div class="row columns" role="group" aria-label="Columns of the file">
      {columns.slice(0, 100).map((name) => (
        <label key={name} class="chip">
          <input type="checkbox" checked={chosen.includes(name)} onChange={() => toggle(name)} />
          {name}
        </label>
      ))}
    </div>
  );
}
