// From what the API tells to what is drawn. Pure.
import type { Table } from "./csv";
import type { Progress, Traces } from "./wire";

export interface Rates {
  x: number[]; // seconds of Unix time
  kinds: { name: string; values: (number | null)[] }[]; // items a second
  total: { name: string; success: number; failed: number }[];
}

/** Items a second in each bucket of the traces, which are cumulative. */
export function rates(traces: Traces): Rates {
  const points = traces.points;
  const last = points.at(-1);
  const names = Object.keys(last?.items ?? {});
  const of = (at: number, name: string) => {
    const items = points[at]?.items[name];
    return (items?.["success"] ?? 0) + (items?.["failed"] ?? 0);
  };
  return {
    x: points.map((point) => Date.parse(point.t) / 1000),
    kinds: names.map((name) => ({
      name,
      values: points.map((_, at) => (of(at, name) - (at > 0 ? of(at - 1, name) : 0)) / traces.bucket_seconds),
    })),
    total: names.map((name) => ({ name, success: last?.items[name]?.["success"] ?? 0, failed: last?.items[name]?.["failed"] ?? 0 })),
  };
}

/** Curves of a training over its steps; thinned to `most` points, of which the last is always there. */
export function learning(entries: readonly Progress[], most: number): { x: number[]; metrics: { name: string; values: (number | null)[] }[] } {
  const steps = new Map<number, Progress>();
  for (const entry of entries) if (entry.step !== null && entry.step !== undefined) steps.set(entry.step, entry);
  const sorted = [...steps.values()].sort((a, b) => a.step! - b.step!);
  const every = Math.ceil(sorted.length / most) || 1;
  const scored = (entry: Progress) => Object.keys(entry.metrics).some((name) => name !== "loss" && /f1|accuracy/.test(name));
  const kept = sorted.filter((entry, at) => at % every === 0 || at === sorted.length - 1 || scored(entry));
  const names = [...new Set(kept.flatMap((entry) => Object.keys(entry.metrics)))].filter((name) => /loss|f1|accuracy/.test(name)).sort();
  return {
    x: kept.map((entry) => entry.step!),
    metrics: names.map((name) => ({ name, values: kept.map((entry) => (typeof entry.metrics[name] === "number" ? (entry.metrics[name] as number) : null)) })),
  };
}

const MOST_CLASSES = 12;

export interface Classes {
  names: string[]; // in the order of their first row
  rows: number[]; // row -> its class, by its place in `names`
  counts: number[];
}

/** The predictions of a result file over its rows; null if it has none, or more classes than can be told apart. */
export function classes(found: Table): Classes | null {
  const column = found.header.indexOf("Prediction");
  if (column < 0 || found.rows.length < 2) return null;
  const names: string[] = [];
  const counts: number[] = [];
  const rows = found.rows.map((row) => {
    const name = row[column] ?? "";
    let at = names.indexOf(name);
    if (at < 0) at = names.push(name) - 1;
    counts[at] = (counts[at] ?? 0) + 1;
    return at;
  });
  return names.length <= MOST_CLASSES ? { names, rows, counts } : null;
}

export interface Along {
  name: string; // of the column, or "rows"
  x: number[];
  time: boolean; // whether x is seconds of Unix time
}

/** What the predictions of a result file are drawn over: the times of its first column, where all are such and they
 * ascend; else its rows. A time without a zone is taken as it is written. */
export function along(found: Table): Along {
  const [name = ""] = found.header;
  const cells = found.rows.map((row) => (row[0] ?? "").trim());
  const dates = cells.every((cell) => /^\d{4}-\d\d-\d\d([T ]\d\d:\d\d|$)/.test(cell));
  const values = dates ? cells.map((cell) => Date.parse(cell) / 1000) : cells.map((cell) => (cell === "" ? NaN : Number(cell)));
  const usable = name !== "row" && name !== "Prediction" && values.every((value, at) => Number.isFinite(value) && (at === 0 || value >= values[at - 1]!));
  if (!usable) return { name: "rows", x: cells.map((_, at) => at), time: false };
  const per = dates ? 1 : unixUnit(values[0]!);
  return { name, x: per ? values.map((value) => value / per) : values, time: per !== null };
}

/** How many of its units make a second, if a number looks like Unix time of this century's years; null if it does not. */
function unixUnit(value: number): number | null {
  return [1, 1e3, 1e6, 1e9].find((per) => value / per >= 9.4e8 && value / per < 4.2e9) ?? null;
}
