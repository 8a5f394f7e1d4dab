// What a form needs to know of a pipeline's JSON Schema, and the way back from fields to a configuration. Pure.
import type { ErrorItem, Json } from "./wire";

export type Kind = "text" | "integer" | "number" | "yes-no" | "choice" | "words" | "json";

export interface Field {
  path: string[]; // within the component's configuration
  kind: Kind;
  description: string;
  required: boolean;
  locked: boolean;
  choices: unknown[];
  least?: number;
  most?: number;
  bounds: string; // in words, for people
  standard: unknown; // what runs if nothing is set; undefined: nothing
  example: unknown;
}

type Schema = Json;

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Every leaf of the component's configuration, in the schema's order; those that a user may not set are locked. */
export function fields(whole: Schema, user: Schema, defaults: unknown): Field[] {
  const found: Field[] = [];
  walk(whole, user, defaults, [], false, whole, user, found);
  return found;
}

function walk(whole: Schema, user: Schema | null, standard: unknown, path: string[], required: boolean, root: Schema, userRoot: Schema, found: Field[]): void {
  const schema = resolved(user ?? whole, user ? userRoot : root);
  const parts = properties(schema);
  const all = properties(resolved(whole, root));
  if (path.length > 8) return;
  if (all || parts) {
    const needed = (schema["required"] as string[] | undefined) ?? [];
    for (const name of new Set([...Object.keys(parts ?? {}), ...Object.keys(all ?? {})])) {
      const mine = parts?.[name];
      const below = isObject(standard) ? standard[name] : undefined;
      walk((all?.[name] ?? mine)!, user && mine ? mine : null, below, [...path, name], needed.includes(name), root, userRoot, found);
    }
    return;
  }
  if (path.length === 0) return;
  found.push({ ...leaf(schema), path, required: required && standard === undefined, locked: user === null, standard: standard ?? schema["default"] });
}

function resolved(schema: Schema, root: Schema): Schema {
  const ref = schema["$ref"];
  if (typeof ref !== "string" || !ref.startsWith("#/")) return schema;
  let at: unknown = root;
  for (const part of ref.slice(2).split("/")) at = isObject(at) ? at[part.replace(/~1/g, "/").replace(/~0/g, "~")] : undefined;
  return isObject(at) ? { ...at, ...schema, $ref: undefined } : schema;
}

function properties(schema: Schema): Record<string, Schema> | null {
  const found = schema["properties"];
  return isObject(found) && Object.keys(found).length > 0 ? (found as Record<string, Schema>) : null;
}

function leaf(schema: Schema): Omit<Field, "path" | "required" | "locked" | "standard"> {
  const number = (name: string) => (typeof schema[name] === "number" ? (schema[name] as number) : undefined);
  const types = [schema["type"]].flat().filter((type) => type !== "null");
  const choices = Array.isArray(schema["enum"]) ? (schema["enum"] as unknown[]) : "const" in schema ? [schema["const"]] : [];
  const items = schema["items"];
  const only = types.length === 1 ? types[0] : undefined;
  let kind: Kind = "json";
  if (choices.length > 0) kind = "choice";
  else if (only === "integer" || only === "number") kind = only;
  else if (only === "boolean") kind = "yes-no";
  else if (only === "string") kind = "text";
  else if (only === "array" && isObject(items) && items["type"] === "string" && !items["enum"]) kind = "words";
  const words = [
    number("minimum") !== undefined && `at least ${number("minimum")}`,
    number("exclusiveMinimum") !== undefined && `more than ${number("exclusiveMinimum")}`,
    number("maximum") !== undefined && `at most ${number("maximum")}`,
    number("exclusiveMaximum") !== undefined && `less than ${number("exclusiveMaximum")}`,
    number("minItems") !== undefined && `${number("minItems")} or more`,
    typeof schema["pattern"] === "string" && `like ${schema["pattern"]}`,
  ];
  return {
    kind,
    choices,
    description: typeof schema["description"] === "string" ? schema["description"] : "",
    least: number("minimum"),
    most: number("maximum"),
    bounds: words.filter(Boolean).join(", "),
    example: Array.isArray(schema["examples"]) ? schema["examples"][0] : undefined,
  };
}

export function jsonPath(component: string, path: readonly string[]): string {
  return ["$.parameters", component, "config", ...path].map((part, at) => (at === 0 ? part : step(part))).join("");
}

function step(name: string): string {
  return /^[A-Za-z_][A-Za-z0-9_]*$/.test(name) ? `.${name}` : `[${JSON.stringify(name)}]`;
}

/** Text of a field -> its value; throws Error in words. undefined: not set. */
export function valueOf(field: Field, text: string): unknown {
  if (text.trim() === "") return undefined;
  switch (field.kind) {
    case "integer":
    case "number": {
      const value = Number(text);
      if (!Number.isFinite(value)) throw new Error("This is no number.");
      if (field.kind === "integer" && !Number.isInteger(value)) throw new Error("This is no whole number.");
      return value;
    }
    case "yes-no":
      return text === "true";
    case "choice":
      return field.choices.find((one) => String(one) === text);
    case "words":
      return words(text);
    case "json":
      try {
        return JSON.parse(text) as unknown;
      } catch {
        return text; // the schema says whether text will do
      }
    default:
      return text;
  }
}

/** Names separated by commas or lines; those that hold a comma stand in quotes. */
export function words(text: string): string[] {
  return [...text.matchAll(/\s*"([^"]*)"\s*|([^,\n]+)/g)].map((found) => (found[1] ?? found[2] ?? "").trim()).filter(Boolean);
}

export function textOf(kind: Kind, value: unknown): string {
  if (value === undefined || value === null) return "";
  if (kind === "words" && Array.isArray(value)) return value.map((one) => (/[,"\n]/.test(String(one)) ? `"${one}"` : String(one))).join(", ");
  return typeof value === "object" || kind === "json" ? JSON.stringify(value) : String(value);
}

/** What was set, as a configuration: nothing that was left to the pipeline's defaults. */
export function configOf(set: readonly (readonly [readonly string[], unknown])[]): Json {
  const found: Json = {};
  for (const [path, value] of set) {
    if (value === undefined) continue;
    let at = found;
    for (const name of path.slice(0, -1)) {
      const below = Object.hasOwn(at, name) ? at[name] : undefined;
      at = isObject(below) ? below : put(at, name, {});
    }
    put(at, path.at(-1)!, value);
  }
  return found;
}

/** An own property, whatever it is called: also `__proto__`. */
function put<T>(at: Json, name: string, value: T): T {
  Object.defineProperty(at, name, { value, enumerable: true, writable: true, configurable: true });
  return value;
}

export function at(config: unknown, path: readonly string[]): unknown {
  let found = config;
  for (const name of path) found = isObject(found) && Object.hasOwn(found, name) ? found[name] : undefined;
  return found;
}

/** Violations by the field they are about: the deepest whose path theirs begins with; "" for those of none. */
export function placed(errors: readonly ErrorItem[], paths: readonly string[]): Map<string, ErrorItem[]> {
  const found = new Map<string, ErrorItem[]>();
  for (const error of errors) {
    const path = error.path ?? "";
    const fits = paths.filter((one) => path === one || path.startsWith(`${one}.`) || path.startsWith(`${one}[`));
    const best = fits.sort((a, b) => b.length - a.length)[0] ?? "";
    found.set(best, [...(found.get(best) ?? []), error]);
  }
  return found;
}
