// A file goes up in parts, three at a time, each checkpointed once it is safe: cut off by whatever, the same file
// chosen again goes on with what is missing. The whole file's checksum is compared at the end. Parts go through the API
// also where it keeps files in an object store, for the page's policy lets it ask no other origin.
import { ApiError, ask, pause, send } from "./api";
import { checksum, crc32c } from "./crc32c";
import type { FileComplete, Upload, UploadPart } from "./wire";

const AT_ONCE = 3;
const TRIES = 6;
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

async function put(upload: string, part: UploadPart, file: Source, signal: AbortSignal): Promise<string> {
  for (let tried = 1; ; tried++) {
    try {
      const body = file.slice(part.offset, part.offset + part.length);
      const answer = await ask(`/files/uploads/${upload}/parts/${part.part_number}`, { method: "PUT", body, signal });
      return answer.headers.get("ETag") ?? "";
    } catch (error) {
      const hopeless = error instanceof ApiError && error.status < 500 && error.status !== 429;
      if (signal.aborted || tried >= TRIES || hopeless) throw error;
      await pause(500 * 2 ** (tried - 1));
    }
  }
}

async function whole(file: Source, signal: AbortSignal): Promise<number> {
  let crc = 0;
  for (let at = 0; at < file.size; at += CHUNK) {
    signal.throwIfAborted();
    crc = crc32c(new Uint8Array(await file.slice(at, at + CHUNK).arrayBuffer()), crc);
  }
  return crc;
}
