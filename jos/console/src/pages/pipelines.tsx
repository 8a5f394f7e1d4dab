// What can be run: each version's ports and settings as documentation.
import { get } from "../api";
import { Empty, Problem, Status } from "../parts";
import { usePoll } from "../poll";
import { link } from "../route";
import { textOf, type Field } from "../schema";
import type { Pipeline, PipelineList } from "../wire";
import { formOf } from "./newjob";

export function PipelinesPage({ id }: { id: string | undefined }) {
  const { value, error } = usePoll((signal) => get<PipelineList>("/batch/registry/pipelines", { limit: 1000 }, signal), 0, []);
  if (!value) return error ? <Problem error={error} /> : <p role="status">Loading…</p>;
  const one = id === undefined ? null : value.pipelines.find((pipeline) => pipeline.id === id);
  if (one === undefined) return <p>There is no such pipeline. <a href="#/pipelines">To all of them</a></p>;
  return one ? <One pipeline={one} versions={value.pipelines.filter((other) => other.pipeline_key === one.pipeline_key)} /> : <List pipelines={value.pipelines} />;
}

function List({ pipelines }: { pipelines: Pipeline[] }) {
  return (
    <>
      <h1>Pipelines</h1>
      {pipelines.length === 0 && <Empty>No pipeline yet.</Empty>}
      <table class="cards">
        <caption class="hidden">Pipelines</caption>
        <thead>
          <tr>
            <th scope="col">Pipeline</th>
            <th scope="col">Version</th>
            <th scope="col">Type</th>
            <th scope="col">Status</th>
            <th scope="col">Of</th>
          </tr>
        </thead>
        <tbody>
          {pipelines.map((one) => (
            <tr key={one.id}>
              <td>
                <a href={link("pipelines", one.id)}>{one.pipeline_key}</a> <small>{one.name}</small>
              </td>
              <td>{one.pipeline_version}</td>
              <td>{one.pipeline_type}</td>
              <td>
                <Status of={one.status} />
              </td>
              <td>{one.visibility === "org" ? "this organisation" : "the platform"}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </>
  );
}

function One({ pipeline, versions }: { pipeline: Pipeline; versions: Pipeline[] }) {
  return (
    <>
      <p>
        <a href="#/pipelines">Pipelines</a>
      </p>
      <div class="row">
        <h1>{pipeline.name}</h1>
        <Status of={pipeline.status} />
        <a class="button primary" href={`#/new?pipeline=${encodeURIComponent(pipeline.pipeline_key)}`}>
          New job
        </a>
      </div>
      <p>
        <code>
          {pipeline.pipeline_key} {pipeline.pipeline_version}
        </code>
      </p>
      <p class="prose">{pipeline.description}</p>
      {versions.length > 1 && (
        <p>
          Versions:{" "}
          {versions.map((one) => (
            <a key={one.id} class="version" href={link("pipelines", one.id)} aria-current={one.id === pipeline.id ? "true" : undefined}>
              {one.pipeline_version}
            </a>
          ))}
        </p>
      )}
      <Ports title="Inputs" ports={pipeline.inputs} />
      <Ports title="Outputs" ports={pipeline.outputs} />
      {Object.entries(formOf(pipeline)).map(([component, some]) => (
        <Settings key={component} component={component} fields={some} />
      ))}
      <h2>Runs with</h2>
      <p>
        {Object.entries(pipeline.resources)
          .filter(([, value]) => value !== null && value !== undefined)
          .map(([name, value]) => `${name} ${textOf("json", value)}`)
          .join(", ")}{" "}
        for each index, in queue {pipeline.queue}
      </p>
    </>
  );
}

function Ports({ title, ports }: { title: string; ports: Pipeline["inputs"] }) {
  const words: Record<string, string> = { scatter: "shared out over the indexes", replicate: "given to every index whole" };
  return (
    <>
      <h2>{title}</h2>
      <dl class="ports">
        {Object.entries(ports).map(([name, port]) => (
          <div key={name}>
            <dt>
              <code>{name}</code> {port["required"] === true && <small>required</small>}{" "}
              {typeof port["distribute"] === "string" && <small>{words[port["distribute"]] ?? port["distribute"]}</small>}
              {port["mode"] === "n_shot_file_list" && <small>, each file with its class</small>}
              {port["mode"] === "checkpoint" && <small>, a checkpoint</small>}
            </dt>
            <dd class="prose">{typeof port["description"] === "string" ? port["description"] : ""}</dd>
          </div>
        ))}
      </dl>
    </>
  );
}

function Settings({ component, fields }: { component: string; fields: Field[] }) {
  return (
    <>
      <h2>Settings of {component}</h2>
      <table class="cards">
        <caption class="hidden">Settings of {component}</caption>
        <thead>
          <tr>
            <th scope="col">Setting</th>
            <th scope="col">Takes</th>
            <th scope="col">Default</th>
            <th scope="col">Means</th>
          </tr>
        </thead>
        <tbody>
          {fields.map((field) => (
            <tr key={field.path.join(".")}>
              <td>
                <code>{field.path.join(".")}</code> {field.required && <small>required</small>} {field.locked && <small>locked</small>}
              </td>
              <td>
                {field.kind === "choice" ? field.choices.map(String).join(" | ") : field.kind === "words" ? "names" : field.kind} <small>{field.bounds}</small>
              </td>
              <td>{field.standard === undefined ? "–" : textOf(field.kind, field.standard)}</td>
              <td class="prose">{field.description}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </>
  );
}
