// A file goes up in parts, three at a time, each checkpointed once it is safe: cut off by whatever, the same file
// chosen again goes on with what is missing. The whole file's checksum is compared at the end. Where parts would go to
// an object store of another origin, which the page's policy forbids, a file is posted whole to this one.
import { ApiError, onThisOrigin, pause, refusal, send, Unreachable } from "./api";
import { checksum, crc32c } from "./crc32c";
import type { FileComplete, Upload, UploadPart } from "./wire";

const AT_ONCE = 3;
const TRIES = 6;
const MOST_WHOLE = 512_000_000; // bytes that POST /files takes
const CHUNK = 4 << 20; // bytes read at once for the checksum

export interface Step {
  sent: number;
  total: number;
}

interface Source {
  name: string;
  size: number;
  type: string;
  slice(from: number, to: number, type?: string): Blob;
}

/** Kinds that browsers do not know. */
export function kindOf(name: string, said: string): string {
  const known: Record<string, string> = { csv: "text/csv", jsonl: "application/x-ndjson", ndjson: "application/x-ndjson", json: "application/json", txt: "text/plain" };
  return known[name.split(".").at(-1)?.toLowerCase() ?? ""] ?? (said || "application/octet-stream");
}

export async function upload(file: Source, tell: (step: Step) => void, signal: AbortSignal): Promise<FileComplete> {
  const begun = await send<Upload>("POST", "/files/uploads/initiate", {
    filename: file.name,
    file_type: kindOf(file.name, file.type),
    num_bytes: file.size,
    resume_if_started: true,
  });
  if (begun.parts.some((part) => onThisOrigin(part.url) === null)) return posted(begun, file, tell);
  const left = begun.parts.reduce((sum, part) => sum + part.length, 0);
  const sent = new Map<number, number>([[0, file.size - left]]); // part -> bytes of it; 0: those of an earlier try
  const told = () => tell({ sent: [...sent.values()].reduce((sum, one) => sum + one, 0), total: file.size });
  told();
  const queue = [...begun.parts];
  const work = async () => {
    for (let part = queue.shift(); part !== undefined; part = queue.shift()) {
      const token = await put(begun.upload_id, part, file, signal);
      await send("POST", `/files/uploads/${begun.upload_id}/parts/checkpoint`, { parts: [{ part_number: part.part_number, part_token: token }] });
      sent.set(part.part_number, part.length);
      told();
    }
  };
  const [crc] = await Promise.all([begun.integrity_algorithm === "crc32c" ? whole(file, signal) : undefined, ...Array.from({ length: AT_ONCE }, work)]);
  return send<FileComplete>("POST", `/files/uploads/${begun.upload_id}/complete`, { parts: [], ...(crc === undefined ? {} : { integrity_checksum: checksum(crc) }) });
}

async function posted(begun: Upload, file: Source, tell: (step: Step) => void): Promise<FileComplete> {
  await send("POST", `/files/uploads/${begun.upload_id}/abort`);
  if (file.size > MOST_WHOLE) throw new Error("This service keeps files in an object store, and takes more than 512 MB from programs only: use the Python client.");
  const form = new FormData();
  form.append("file", file.slice(0, file.size, kindOf(file.name, file.type)), file.name);
  tell({ sent: 0, total: file.size });
  const made = await send<{ file_uid: string; file_id: string }>("POST", "/files", form);
  tell({ sent: file.size, total: file.size });
  return { file_uid: made.file_uid, file_name: made.file_id, num_bytes: file.size, file_status: "Registered", file_attributes: {} };
}

async function put(upload: string, part: UploadPart, file: Source, signal: AbortSignal): Promise<string> {
  let url = part.url;
  for (let tried = 1; ; tried++) {
    try {
      const answer = await fetch(onThisOrigin(url) ?? "", { method: "PUT", body: file.slice(part.offset, part.offset + part.length), signal, credentials: "omit" }).catch((error) => {
        throw signal.aborted ? error : new Unreachable();
      });
      if (!answer.ok) throw await refusal(answer);
      return answer.headers.get("ETag") ?? "";
    } catch (error) {
      if (signal.aborted || tried >= TRIES || (error instanceof ApiError && error.status < 500 && ![403, 429].includes(error.status))) throw error;
      await pause(500 * 2 ** (tried - 1));
      url = await renewed(upload, part).catch(() => url); // the old one may have run out
    }
  }
}

async function renewed(upload: string, part: UploadPart): Promise<string> {
  const found = await send<{ parts: UploadPart[] }>("POST", `/files/uploads/${upload}/parts/urls`, { part_numbers: [part.part_number] });
  return found.parts[0]?.url ?? part.url;
}

async function whole(file: Source, signal: AbortSignal): Promise<number> {
  let crc = 0;
  for (let at = 0; at < file.size; at += CHUNK) {
    signal.throwIfAborted();
    crc = crc32c(new Uint8Array(await file.slice(at, at + CHUNK).arrayBuffer()), crc);
  }
  return crc;
}
