// The console's decisions, without a browser. What people see is tested in tests/e2e/test_console.py.
import { describe, expect, test } from "vitest";
import { curl, python, yaml, type Request } from "../src/compose";
import { checksum, crc32c } from "../src/crc32c";
import { table } from "../src/csv";
import { along, classes, learning, rates } from "../src/curves";
import { amounts, bytes, duration, eta, sampled, type Sample } from "../src/format";
import { configOf, fields, jsonPath, placed, valueOf, words } from "../src/schema";
import { BEGINNING, told } from "../src/story";
import { Messages } from "../src/stream";
import type { JobEvent, Progress } from "../src/wire";

describe("the stream", () => {
  test("messages are the same however the text is cut", () => {
    const text = 'id: e1.p0\nevent: event\ndata: {"a":1}\n\n: quiet\n\nid: e1.p1\r\nevent: progress\r\ndata: {}\r\n\r\nevent: end\ndata: {}\n\n';
    for (const size of [1, 3, 1000]) {
      const messages = new Messages();
      const found = Array.from({ length: Math.ceil(text.length / size) }, (_, n) => messages.add(text.slice(n * size, (n + 1) * size))).flat();
      expect(found.map((one) => [one.id, one.event, one.data])).toEqual([
        ["e1.p0", "event", '{"a":1}'],
        ["e1.p1", "progress", "{}"],
        ["e1.p1", "end", "{}"],
      ]);
    }
  });
});

const event = (id: number, event_type: string, more: Partial<JobEvent> = {}): JobEvent => ({
  id,
  event_type,
  level: "INFO",
  message: "",
  payload: {},
  created_at: new Date(1000 * id).toISOString(),
  ...more,
});

describe("the time line", () => {
  test("a preempted job waits again, and its indexes end with the attempt", () => {
    const happened = [
      event(1, "job.created"),
      event(2, "job.admitted"),
      event(3, "index.started", { index: 0 }),
      event(4, "job.started"),
      event(5, "job.preempted"),
      event(6, "job.requeued"),
    ];
    const story = told(BEGINNING, happened);
    expect(story.attempts.map((span) => span.state)).toEqual(["waiting", "admitted", "running", "leaving", "waiting"]);
    expect(story.lanes.get(0)).toMatchObject([{ from: 3000, to: 5000, state: "up" }]);
    expect(told(story, happened)).toEqual(story); // told twice, it is the same
  });

  test("however often an index dies, what is kept is bounded", () => {
    let story = BEGINNING;
    for (let id = 1; id < 2000; id++) story = told(story, [event(id, id % 2 ? "index.restarted" : "index.lost", { index: 3 })]);
    expect(story.lanes.get(3)!.length).toBeLessThanOrEqual(100);
    expect(story.lanes.get(3)!.at(-1)!.state).toBe("up");
  });
});

const SCHEMA = {
  type: "object",
  required: ["size"],
  properties: {
    size: { type: "integer", minimum: 3, description: "Rows." },
    reader: { type: "object", properties: { columns: { type: "array", items: { type: "string" } }, "odd name": { type: "boolean" } } },
    how: { $ref: "#/$defs/how" },
    inner: { type: "number" },
  },
  $defs: { how: { enum: ["a", "b"] } },
};
const USER = { ...SCHEMA, properties: { ...SCHEMA.properties, inner: undefined as unknown } };
delete USER.properties.inner;

describe("the form of a schema", () => {
  const form = fields(SCHEMA, USER, { size: 8, how: "a" });
  test("each setting has its kind, its default and whether it is locked", () => {
    expect(form.map((one) => [one.path.join("/"), one.kind, one.standard, one.locked])).toEqual([
      ["size", "integer", 8, false],
      ["reader/columns", "words", undefined, false],
      ["reader/odd name", "yes-no", undefined, false],
      ["how", "choice", "a", false],
      ["inner", "number", undefined, true],
    ]);
    expect(form[0]!.bounds).toBe("at least 3");
  });

  test("paths are those that the server tells violations by", () => {
    expect(jsonPath("worker", ["reader", "columns"])).toBe("$.parameters.worker.config.reader.columns");
    const items = [
      { code: "x", message: "m", error_uid: "1", path: "$.parameters.worker.config.reader.columns[0]" },
      { code: "x", message: "m", error_uid: "2", path: "$.elsewhere" },
    ];
    const found = placed(items, ["$.parameters.worker.config.reader.columns", "$.parameters.worker.config.size"]);
    expect([...found.keys()]).toEqual(["$.parameters.worker.config.reader.columns", ""]);
  });

  test("text becomes values, and only what was set is sent", () => {
    expect(valueOf(form[0]!, " 12 ")).toBe(12);
    expect(() => valueOf(form[0]!, "1.5")).toThrow("whole");
    expect(words('a, "b, c", d')).toEqual(["a", "b, c", "d"]);
    const config = configOf([[["reader", "columns"], ["a"]], [["size"], undefined], [["__proto__", "x"], 1]]);
    expect(JSON.stringify(config)).toBe('{"reader":{"columns":["a"]},"__proto__":{"x":1}}');
    expect(({} as Record<string, unknown>)["x"]).toBeUndefined();
  });
});

const REQUEST: Request = {
  name: "it's",
  pipeline_type: "batch",
  pipeline_key: "shout",
  inputs: { "worker.data": [{ file_id: "a b.csv", metadata: { class: "on" } }] },
  parameters: { worker: { parallelism: 2, config: { flag: true, none: null, list: ["x", "1"] } } },
};

describe("the same as code", () => {
  test("in a shell, quotes of a name stay quotes", () => {
    expect(curl(REQUEST, "http://h")).toContain("\"it'\\''s\"");
  });
  test("in Python, values are Python's", () => {
    const text = python(REQUEST, "http://h");
    expect(text).toContain('"worker.data": [("a b.csv", "on")]');
    expect(text).toContain('"flag": True');
    expect(text).toContain('"none": None');
  });
  test("in YAML, words that mean something else are quoted", () => {
    expect(yaml(REQUEST)).toBe(
      'name: "it\'s"\npipeline_type: batch\npipeline_key: shout\ninputs:\n  worker.data:\n    - {file_id: a b.csv, metadata: {class: "on"}}\n' +
        'parameters:\n  worker:\n    parallelism: 2\n    config:\n      flag: true\n      none: null\n      list: [x, "1"]\n',
    );
  });
});

describe("figures", () => {
  test("sizes and durations read well", () => {
    expect([bytes(999), bytes(1000), bytes(999_999), bytes(512_000_000)]).toEqual(["999 B", "1.0 kB", "1.0 MB", "512 MB"]);
    expect([duration(0.25), duration(75), duration(7_300), duration(90_000), duration(-1)]).toEqual(["0.3 s", "1 min 15 s", "2 h 1 min", "1 d 1 h", "–"]);
  });

  test("what a queue uses is told beside its quota, and alone where nothing limits it", () => {
    expect(amounts({ cpu: 64, memory: 256e9, gpu: 0 }, { cpu: 80, "gpu:H100": 1.5 })).toEqual([
      { name: "cpu", text: "80 of 64", share: 1.25 },
      { name: "memory", text: "0 B of 256 GB", share: 0 },
      { name: "gpu", text: "0 of 0", share: 0 },
      { name: "gpu:H100", text: "1.5", share: null },
    ]);
  });
  test("the time to go follows the last minute, and starts anew with the work", () => {
    let samples: Sample[] = [];
    for (let second = 0; second <= 300; second++) samples = sampled(samples, { at: second * 1000, done: second < 200 ? 0 : (second - 200) / 200 });
    expect(samples.length).toBeLessThan(65);
    expect(eta(samples)).toBeCloseTo(100, 0);
    expect(sampled(samples, { at: 301_000, done: 0 })).toHaveLength(1);
    expect(eta([])).toBeNull();
  });

  test("the checksum is CRC-32C, in pieces too", () => {
    const text = new TextEncoder().encode("123456789");
    expect(crc32c(text)).toBe(0xe3069283);
    expect(crc32c(text.slice(4), crc32c(text.slice(0, 4)))).toBe(0xe3069283);
    expect(checksum(0xe3069283)).toBe("4waSgw==");
  });

  test("throughput is the growth of the traces", () => {
    const point = (t: string, success: number) => ({ t, step: 0, files: {}, items: { inference: { success, failed: 0 } } });
    const found = rates({ job_id: "j", bucket_seconds: 2, points: [point("2026-01-01T00:00:02Z", 4), point("2026-01-01T00:00:04Z", 10)] });
    expect(found.kinds).toEqual([{ name: "inference", values: [2, 3] }]);
  });

  test("learning curves are thinned, but keep every score and the last step", () => {
    const entries = Array.from({ length: 1000 }, (_, n) => ({ id: n, kind: "training", step: n + 1, message: "", metrics: n % 100 === 99 ? { loss: 1, macro_f1: 0.5 } : { loss: 1 }, payload: {}, created_at: "" })) as Progress[];
    const found = learning(entries, 50);
    expect(found.x.length).toBeLessThan(70);
    expect(found.x.at(-1)).toBe(1000);
    expect(found.metrics.find((one) => one.name === "macro_f1")!.values.filter((one) => one !== null)).toHaveLength(10);
  });
});

test("a preview reads quoted cells, other separators, and leaves out a row that was cut off", () => {
  expect(table('a;b\n"x;1";"say ""hi"""\n3;4', 10, true)).toEqual({ header: ["a", "b"], rows: [["x;1", 'say "hi"'], ["3", "4"]] });
  expect(table("a,b\r\n1,2\r\n3,", 10, false).rows).toEqual([["1", "2"]]);
  expect(table("", 5, true)).toEqual({ header: [], rows: [] });
});

test("predictions are told by class, unless there are too many to tell apart", () => {
  const found = table("time,Prediction\n0,idle\n1,busy\n2,idle\n", 10, true);
  expect(classes(found)).toEqual({ names: ["idle", "busy"], rows: [0, 1, 0], counts: [2, 1] });
  expect(classes({ header: ["Prediction"], rows: Array.from({ length: 40 }, (_, n) => [String(n)]) })).toBeNull();
  expect(classes(table("a,b\n1,2\n3,4\n", 10, true))).toBeNull();
});

describe("predictions are drawn over", () => {
  const over = (name: string, ...cells: string[]) => along({ header: [name, "Prediction"], rows: cells.map((cell) => [cell, "idle"]) });
  const rows = { name: "rows", x: [0, 1], time: false };
  test("dates, in their own zone or as they are written", () => {
    expect(over("time", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.5Z")).toEqual({ name: "time", x: [1767323045, 1767323045.5], time: true });
    expect(over("t", "2026-01-02 03:04", "2026-01-02 03:05").x).toEqual([0, 60].map((s) => new Date(2026, 0, 2, 3, 4).getTime() / 1000 + s));
    expect(over("day", "2026-01-02", "2026-01-03").time).toBe(true);
  });
  test("Unix time in any of its units", () => {
    for (const per of [1, 1e3, 1e6, 1e9]) expect(over("ts", String(1767323045 * per), String(1767323046 * per))).toEqual({ name: "ts", x: [1767323045, 1767323046], time: true });
  });
  test("other numbers as they are", () => {
    expect(over("seconds", "0", "0.5")).toEqual({ name: "seconds", x: [0, 0.5], time: false });
  });
  test("rows, where there is no time, or it is none, or it goes back", () => {
    expect(over("row", "0", "16")).toEqual(rows);
    expect(over("time", "1", "")).toEqual(rows);
    expect(over("time", "monday", "tuesday 2")).toEqual(rows);
    expect(over("time", "2026-13-45", "2026-14-45")).toEqual(rows);
    expect(over("time", "5", "4")).toEqual(rows);
    expect(along({ header: ["Prediction"], rows: [["1"], ["2"]] })).toEqual(rows);
  });
});
