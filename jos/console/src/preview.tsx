// The beginning of a file, by a ranged request: a CSV as a table, other text as text.
import { useEffect, useMemo, useState } from "preact/hooks";
import { ask } from "./api";
import { table, type Table } from "./csv";
import { along, classes } from "./curves";
import { bytes, count } from "./format";
import { Problem } from "./parts";
import { Plot } from "./plot";

const HEAD = 65_536; // bytes that are read
const ROWS = 20;
const LONG = 2_000_000; // bytes that are read of results, whose predictions are drawn
const MOST_ROWS = 50_000;

export interface Source {
  name: string;
  bytes: number;
  path: string; // of its bytes, below the API's base
  results?: boolean; // whether it may hold predictions
}

/** Of a file in the Files API. */
export function fileAt(name: string): string {
  return `/files/download/${encodeURIComponent(name)}`;
}

export async function head(source: Pick<Source, "path" | "bytes">, signal?: AbortSignal, most = HEAD): Promise<string> {
  if (source.bytes === 0) return "";
  const headers = { Range: `bytes=0-${most - 1}` };
  return (await ask(source.path, { headers, signal })).text();
}

export function Preview({ source, close }: { source: Source; close: () => void }) {
  const [text, setText] = useState<string | null>(null);
  const [error, setError] = useState<Error | null>(null);
  useEffect(() => {
    const stop = new AbortController();
    setText(null);
    setError(null);
    head(source, stop.signal).then(setText, (failed) => stop.signal.aborted || setError(failed));
    return () => stop.abort();
  }, [source.path]);
  return (
    <section class="preview" aria-label={`Preview of ${source.name}`}>
      <p class="row">
        <strong>{source.name}</strong> <small>{bytes(source.bytes)}</small>
        <button type="button" class="small" onClick={close}>
          Close preview
        </button>
      </p>
      <Problem error={error} />
      {text === null && !error && <p role="status">Loading…</p>}
      {text === "" && <p>The file is empty.</p>}
      {text && source.results && /^[^\n]*\bPrediction\b/.test(text) && <Predictions source={source} />}
      {text && (/\.(csv|tsv)$/i.test(source.name) ? <Rows text={text} whole={source.bytes <= HEAD} /> : <Plain text={text} whole={source.bytes <= HEAD} />)}
    </section>
  );
}

export function Rows({ text, whole, rows = ROWS }: { text: string; whole: boolean; rows?: number }) {
  const found = table(text, rows, whole);
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="First rows">
      <table>
        <thead>
          <tr>
            {found.header.map((name, at) => (
              <th key={at} scope="col">
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {found.rows.map((row, at) => (
            <tr key={at}>
              {row.map((cell, column) => (
                <td key={column}>{cell}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Which class was predicted over the time of a result, or along its rows. */
function Predictions({ source }: { source: Source }) {
  const [text, setText] = useState("");
  const [error, setError] = useState<Error | null>(null);
  useEffect(() => {
    const stop = new AbortController();
    setError(null);
    head(source, stop.signal, LONG).then(setText, (failed) => stop.signal.aborted || setError(failed));
    return () => stop.abort();
  }, [source.path]);
  const drawn = useMemo(() => (text ? predictions(table(text, MOST_ROWS, source.bytes <= LONG)) : null), [text]);
  if (!drawn) return <Problem error={error} />;
  return (
    <>
      <p>
        {source.bytes > LONG && "Of the first "}
        {count(drawn.x.length)} predictions: {drawn.words}
      </p>
      <Plot x={drawn.x} curves={drawn.curves} time={drawn.time} steps={drawn.steps} label={`Predictions over ${drawn.over}: ${drawn.words}`} />
    </>
  );
}

function predictions(found: Table) {
  const states = classes(found);
  if (!states) return null;
  const { name: over, x, time } = along(found);
  const words = states.names.map((name, at) => `${name} ${count(states.counts[at]!)}`).join(", ");
  return { over, x, time, words, steps: states.names, curves: [{ name: "prediction", values: states.rows }] };
}

function Plain({ text, whole }: { text: string; whole: boolean }) {
  const lines = text.split("\n").slice(0, 2 * ROWS);
  return (
    <pre class="scroll" tabIndex={0}>
      {lines.map((line) => (line.length > 2000 ? `${line.slice(0, 2000)} …` : line)).join("\n")}
      {!whole && "\n…"}
    </pre>
  );
}
