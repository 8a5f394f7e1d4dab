// The one way to the API: same origin, the key in a header and nowhere else. The key lives in this module's memory
// until the page is left or its owner signs out; it is never written to storage, a cookie or a URL.
import type { ErrorItem } from "./wire";

const BASE = "/v0.5";
const PATIENCE = 4; // tries of a question that the server asks to put again later

let key = "";
let onRefused: () => void = () => undefined;

export function signIn(secret: string, refused: () => void): void {
  key = secret;
  onRefused = refused;
}

export function signOut(): void {
  key = "";
}

export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly items: ErrorItem[],
  ) {
    super(items.map((one) => one.message).join(" ") || `The server answered ${status}.`);
  }
}

/** The server was not reached: a state of the connection, not a refusal. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

export type Query = Record<string, string | number | readonly string[] | undefined>;

export function withQuery(path: string, query: Query = {}): string {
  const pairs = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one !== undefined && one !== "") pairs.append(name, String(one));
  }
  const text = pairs.toString();
  return text ? `${path}?${text}` : path;
}

export interface Asked {
  method?: string;
  query?: Query;
  body?: unknown; // sent as JSON, bytes as they are
  headers?: Record<string, string>;
  signal?: AbortSignal;
  base?: string;
}

/** The answer as it came, if it is a success; ApiError or Unreachable otherwise. 429 and 503 are asked again. */
export async function ask(path: string, asked: Asked = {}): Promise<Response> {
  const { method = "GET", query, body, headers = {}, signal, base = BASE } = asked;
  const sent: RequestInit = { method, headers: { Authorization: `Bearer ${key}`, ...headers }, cache: "no-store" };
  if (signal) sent.signal = signal;
  if (body instanceof Blob) sent.body = body;
  else if (body !== undefined) {
    sent.body = JSON.stringify(body);
    (sent.headers as Record<string, string>)["Content-Type"] = "application/json";
  }
  for (let tried = 1; ; tried++) {
    const answer = await fetch(withQuery(base + path, query), sent).catch((error: unknown) => {
      throw signal?.aborted ? error : new Unreachable();
    });
    if (answer.ok) return answer;
    const again = answer.status === 429 || (answer.status === 503 && method === "GET");
    if (again && tried < PATIENCE) {
      await pause(1000 * Math.min(Number(answer.headers.get("Retry-After")) || 1, 10));
      continue;
    }
    throw await refusal(answer);
  }
}

async function refusal(answer: Response): Promise<ApiError> {
  const said: unknown = await answer.json().catch(() => null);
  const items = (said as { errors?: ErrorItem[] } | null)?.errors ?? [];
  if (answer.status === 401) onRefused();
  return new ApiError(answer.status, Array.isArray(items) ? items : []);
}

export async function get<T>(path: string, query?: Query, signal?: AbortSignal): Promise<T> {
  return (await (await ask(path, { query, signal })).json()) as T;
}

export async function send<T>(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<T> {
  return (await (await ask(path, { method, body, headers })).json()) as T;
}

/** A link that the API made, at this page's origin: clients may be told another name of the same server. */
export function here(link: string): string {
  const { pathname, search } = new URL(link);
  return pathname.slice(pathname.lastIndexOf(`${BASE}/`)) + search;
}

export function pause(ms: number): Promise<void> {
  return new Promise((done) => setTimeout(done, ms));
}
