// The beginning of a file, by a ranged request: a CSV as a table, other text as text.
import { useEffect, useState } from "preact/hooks";
import { ask, onThisOrigin, refusal } from "./api";
import { table } from "./csv";
import { bytes } from "./format";
import { Problem } from "./parts";

const HEAD = 65_536; // bytes that are read
const ROWS = 20;

export interface Source {
  name: string;
  bytes: number;
  link?: string; // signed, needs no key
}

export async function head(source: Source, signal?: AbortSignal): Promise<string> {
  if (source.bytes === 0) return "";
  const headers = { Range: `bytes=0-${HEAD - 1}` };
  if (source.link === undefined) return (await ask(`/files/download/${encodeURIComponent(source.name)}`, { headers, signal })).text();
  const link = onThisOrigin(source.link);
  if (link === null) throw new Error("This file lies in an object store that this page does not ask. Download it to look at it.");
  const answer = await fetch(link, { headers, signal, credentials: "omit" });
  if (!answer.ok) throw await refusal(answer);
  return answer.text();
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
  }, [source.name, source.link]);
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

function Plain({ text, whole }: { text: string; whole: boolean }) {
  const lines = text.split("\n").slice(0, 2 * ROWS);
  return (
    <pre class="scroll" tabIndex={0}>
      {lines.map((line) => (line.length > 2000 ? `${line.slice(0, 2000)} …` : line)).join("\n")}
      {!whole && "\n…"}
    </pre>
  );
}
