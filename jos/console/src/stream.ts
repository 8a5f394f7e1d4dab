// A job's event stream, read with fetch so that the key travels in a header. A connection that is lost is taken up
// after the last message that came, so that nothing is missed or shown twice, however long the server was away.
import { ApiError, ask, pause } from "./api";

export interface Message {
  id: string;
  event: string;
  data: string;
}

/** Cuts text, as it arrives in any pieces, into server-sent messages. Comments are passed over. */
export class Messages {
  private rest = "";
  private current: Message = { id: "", event: "message", data: "" };

  add(text: string): Message[] {
    const lines = (this.rest + text).split(/\r?\n/);
    this.rest = lines.pop() ?? "";
    const found: Message[] = [];
    for (const line of lines) {
      if (line === "") {
        if (this.current.data || this.current.event !== "message") found.push(this.current);
        this.current = { id: this.current.id, event: "message", data: "" };
        continue;
      }
      const [name, value] = field(line);
      if (name === "id") this.current.id = value;
      else if (name === "event") this.current.event = value;
      else if (name === "data") this.current.data += (this.current.data ? "\n" : "") + value;
    }
    return found;
  }
}

function field(line: string): [string, string] {
  const colon = line.indexOf(":");
  return colon < 0 ? [line, ""] : [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, "")];
}

export type Connection = "live" | "lost" | "over";

const SILENCE = 45_000; // the server says something every 15 s
const LONGEST_WAIT = 5_000;

/** Tells every message after `last` until `end` or the signal; returns the id to go on from after a retry. */
export async function follow(
  path: string,
  last: string,
  tell: (message: Message) => void,
  state: (now: Connection) => void,
  signal: AbortSignal,
): Promise<string> {
  for (let wait = 250; !signal.aborted; wait = Math.min(wait * 2, LONGEST_WAIT)) {
    try {
      const ended = await once(path, last, signal, () => state("live"), (message) => {
        wait = 125;
        if (message.id) last = message.id;
        if (message.event !== "end") tell(message);
      });
      if (ended) {
        state("over");
        return last;
      }
    } catch (error) {
      if (signal.aborted) return last;
      if (error instanceof ApiError && error.status < 500 && error.status !== 429) throw error;
    }
    state("lost");
    await pause(wait);
  }
  return last;
}

async function once(path: string, last: string, signal: AbortSignal, open: () => void, tell: (message: Message) => void): Promise<boolean> {
  const own = new AbortController();
  const stop = () => own.abort();
  signal.addEventListener("abort", stop);
  let watch = setTimeout(stop, SILENCE);
  try {
    const answer = await ask(path, { headers: last ? { "Last-Event-ID": last } : {}, signal: own.signal });
    open();
    const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
    const messages = new Messages();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return false;
      clearTimeout(watch);
      watch = setTimeout(stop, SILENCE);
      for (const message of messages.add(value)) {
        tell(message);
        if (message.event === "end") return true;
      }
    }
  } finally {
    clearTimeout(watch);
    signal.removeEventListener("abort", stop);
    own.abort();
  }
}
