// The organisation's files, newest first.
import { useState } from "preact/hooks";
import { ask, send } from "../api";
import { Drop } from "../drop";
import { bytes, count } from "../format";
import { Empty, Problem, Sure, When } from "../parts";
import { usePoll } from "../poll";
import { fileAt, Preview, type Source } from "../preview";
import type { FilePage, FileRecord } from "../wire";

const PAGE = 50;
const LARGEST = 200_000_000; // bytes that are taken through the page's memory

export async function newestFiles(limit: number, after: string, signal?: AbortSignal): Promise<FilePage> {
  return (await (await ask("/files/metadata", { base: "/api", query: { limit, after }, signal })).json()) as FilePage;
}

export function FilesPage({ name }: { name: string | undefined }) {
  const [before, setBefore] = useState<string[]>([]); // cursors of the pages before this one
  const [seen, setSeen] = useState<Source | null>(null);
  const after = before.at(-1) ?? "";
  const { value, error, again } = usePoll((signal) => newestFiles(PAGE, after, signal), 0, [after]);
  return (
    <>
      <h1>Files</h1>
      <Drop label="Upload files" done={() => (setBefore([]), again())} />
      <Problem error={error} />
      {!value && !error && <p role="status">Loading…</p>}
      {value?.data.length === 0 && <Empty>No file yet.</Empty>}
      {value && value.data.length > 0 && (
        <table class="cards">
          <caption class="hidden">Files, newest first</caption>
          <thead>
            <tr>
              <th scope="col">Name</th>
              <th scope="col">Size</th>
              <th scope="col">Holds</th>
              <th scope="col">Uploaded</th>
              <th scope="col">
                <span class="hidden">Do</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {value.data.map((file) => (
              <tr key={file.file_uid} class={file.file_id === name ? "chosen" : ""}>
                <td>{file.file_id}</td>
                <td>{bytes(file.num_bytes)}</td>
                <td>{holds(file)}</td>
                <td>
                  <When time={file.created_at} />
                </td>
                <td class="row">
                  <button type="button" class="small" aria-label={`Preview ${file.file_id}`} onClick={() => setSeen({ name: file.file_id, bytes: file.num_bytes, path: fileAt(file.file_id) })}>
                    Preview
                  </button>
                  <Download file={file} />
                  <Sure
                    label="Delete"
                    ask={`Delete ${file.file_id}? A file that a live job reads cannot be deleted.`}
                    act={() => send("DELETE", `/files/delete/${encodeURIComponent(file.file_id)}`).then(again)}
                  />
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      <p class="pager">
        <button type="button" disabled={before.length === 0} onClick={() => setBefore(before.slice(0, -1))}>
          Newer
        </button>
        <button type="button" disabled={!value?.next_cursor} onClick={() => value?.next_cursor && setBefore([...before, value.next_cursor])}>
          Older
        </button>
      </p>
      {seen && <Preview source={seen} close={() => setSeen(null)} />}
    </>
  );
}

function holds(file: FileRecord): string {
  if (file.file_status !== "Registered") return file.file_status;
  const { num_rows: rows, num_columns: columns } = file.file_attributes;
  return typeof rows === "number" && typeof columns === "number" ? `${count(rows)} rows × ${columns} columns` : file.file_type;
}

/** The key travels in a header, so the bytes come through the page; very large files are for programs. */
function Download({ file }: { file: FileRecord }) {
  const [error, setError] = useState<Error | null>(null);
  if (file.num_bytes > LARGEST) return <small>download it with the client</small>;
  const save = async () => {
    setError(null);
    try {
      const data = await (await ask(fileAt(file.file_id))).blob();
      const url = URL.createObjectURL(data);
      const link = document.createElement("a");
      link.href = url;
      link.download = file.file_id;
      link.click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
    } catch (failed) {
      setError(failed as Error);
    }
  };
  return (
    <>
      <button type="button" class="small" aria-label={`Download ${file.file_id}`} onClick={save}>
        Download
      </button>
      <Problem error={error} />
    </>
  );
}
