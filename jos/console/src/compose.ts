// A request for a job, written for a terminal, for Python and as a job file: what the form sends, to be kept or
// repeated. The key is never in it.
import type { Json } from "./wire";

export interface Request {
  name: string;
  pipeline_type: string;
  pipeline_key: string;
  pipeline_version?: string;
  inputs: Record<string, Json[]>;
  parameters: Record<string, Json>;
  priority?: number;
}

export function curl(request: Request, origin: string): string {
  const body = JSON.stringify(request, null, 2).replaceAll("'", "'\\''");
  return `curl -H "Authorization: Bearer $JOS_API_KEY" -H 'Content-Type: application/json' \\\n  ${origin}/v0.5/batch/jobs -d '${body}'\n`;
}

export function python(request: Request, origin: string): string {
  const { name, pipeline_key, pipeline_version, inputs, parameters, priority } = request;
  const ports = Object.entries(inputs).map(([port, refs]) => `        ${literal(port)}: [${refs.map(input).join(", ")}],\n`);
  const lines = [
    `    ${literal(pipeline_key)},`,
    `    inputs={\n${ports.join("")}    },`,
    `    parameters=${literal(parameters, 4)},`,
    `    name=${literal(name)},`,
    pipeline_version && `    version=${literal(pipeline_version)},`,
    priority !== undefined && `    priority=${priority},`,
  ];
  return `import jos\n\nclient = jos.Client(${literal(origin)})  # the key: JOS_API_KEY, or jos login\njob = client.jobs.create(\n${lines.filter(Boolean).join("\n")}\n)\njob.wait(progress=True)\njob.download("results")\n`;
}

function input(ref: Json): string {
  const label = (ref["metadata"] as Json | undefined)?.["class"];
  const id = ref["checkpoint_id"] ?? ref["file_id"];
  return label === undefined ? literal(id) : `(${literal(id)}, ${literal(label)})`;
}

function literal(value: unknown, indent = 0): string {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map((one) => literal(one, indent)).join(", ")}]`;
  if (typeof value === "object") {
    const pad = " ".repeat(indent + 4);
    const rows = Object.entries(value).map(([name, one]) => `${pad}${literal(name)}: ${literal(one, indent + 4)},\n`);
    return rows.length ? `{\n${rows.join("")}${" ".repeat(indent)}}` : "{}";
  }
  return JSON.stringify(value); // JSON's strings and numbers are Python's
}

export function yaml(request: Request): string {
  return block(request as unknown as Json, 0);
}

function block(value: Json, depth: number): string {
  const pad = "  ".repeat(depth);
  return Object.entries(value)
    .filter(([, one]) => one !== undefined)
    .map(([name, one]) => {
      const key = `${pad}${scalar(name)}:`;
      if (Array.isArray(one) && one.some((item) => typeof item === "object")) return `${key}\n${one.map((item) => `${pad}  - ${flow(item)}\n`).join("")}`;
      if (typeof one === "object" && one !== null && !Array.isArray(one) && Object.keys(one).length) return `${key}\n${block(one as Json, depth + 1)}`;
      return `${key} ${flow(one)}\n`;
    })
    .join("");
}

function flow(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(flow).join(", ")}]`;
  if (typeof value === "object" && value !== null) return `{${Object.entries(value).map(([name, one]) => `${scalar(name)}: ${flow(one)}`).join(", ")}}`;
  return typeof value === "string" ? scalar(value) : JSON.stringify(value);
}

/** A word that YAML cannot take for anything else stands as it is; all else in JSON's quotes, which YAML reads. */
function scalar(text: string): string {
  const plain = /^[A-Za-z][A-Za-z0-9_.-]*( [A-Za-z0-9_.-]+)*$/.test(text) && !/^(true|false|null|yes|no|on|off|y|n)$/i.test(text);
  return plain ? text : JSON.stringify(text);
}
