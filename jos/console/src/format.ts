// Figures and times in a few characters.

export function bytes(count: number): string {
  if (count < 1000) return `${count} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let value = count;
  let unit = -1;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function duration(seconds: number): string {
  if (!Number.isFinite(seconds) || seconds < 0) return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86_400)} d ${Math.floor((whole % 86_400) / 3600)} h`;
}

export function ago(time: string, now: number = Date.now()): string {
  const seconds = (now - Date.parse(time)) / 1000;
  return seconds < 5 ? "just now" : `${duration(seconds)} ago`;
}

export function clock(time: string): string {
  return new Date(time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

export function day(time: string): string {
  return new Date(time).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
}

export function count(value: number): string {
  return value.toLocaleString("en");
}

export function figure(value: number): string {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  return Math.abs(value) >= 1000 ? count(Math.round(value)) : String(Number(value.toPrecision(3)));
}

export interface Amount {
  name: string;
  text: string; // "12 of 64", or what is used where there is no limit
  share: number | null; // of the quota; above 1 where a queue borrows, null where nothing limits it
}

/** What a queue uses of each resource that it has a quota of, or uses. */
export function amounts(quota: Record<string, number>, used: Record<string, number>): Amount[] {
  return [...new Set([...Object.keys(quota), ...Object.keys(used)])].map((name) => {
    const say = name === "memory" ? bytes : figure;
    const [most, now] = [quota[name], used[name] ?? 0];
    if (most === undefined) return { name, text: say(now), share: null };
    return { name, text: `${say(now)} of ${say(most)}`, share: most > 0 ? now / most : Number(now > 0) };
  });
}

export interface Sample {
  at: number; // ms
  done: number; // 0 to 1
}

const WINDOW = 60_000; // ms that the pace is measured over

/** Keeps the samples of the last minute, and the one before it as their start. */
export function sampled(samples: readonly Sample[], next: Sample): Sample[] {
  const last = samples.at(-1);
  if (last && next.done < last.done) return [next]; // begun anew
  const kept = [...samples, next];
  const from = kept.findIndex((one) => one.at >= next.at - WINDOW);
  return kept.slice(Math.max(0, from - 1));
}

/** Seconds to go at the pace of the samples; null while that cannot be told. */
export function eta(samples: readonly Sample[]): number | null {
  const first = samples[0];
  const last = samples.at(-1);
  if (!first || !last || last.at - first.at < 1000 || last.done <= first.done) return null;
  return ((1 - last.done) * (last.at - first.at)) / (last.done - first.done) / 1000;
}
