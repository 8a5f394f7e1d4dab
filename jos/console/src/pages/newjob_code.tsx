// The form's request as a person would type it elsewhere.
import { useState } from "preact/hooks";
import { curl, python, yaml, type Request } from "../compose";
import { Copy } from "../parts";

const WAYS = ["curl", "Python", "YAML"] as const;

export function AsCode({ request }: { request: Request }) {
  const [way, setWay] = useState<(typeof WAYS)[number]>("curl");
  const text = way === "curl" ? curl(request, location.origin) : way === "Python" ? python(request, location.origin) : yaml(request);
  return (
    <details>
      <summary>The same from a terminal, from Python, or as a job file</summary>
      <p class="row">
        {WAYS.map((one) => (
          <label key={one} class="chip">
            <input type="radio" name="way" checked={way === one} onChange={() => setWay(one)} />
            {one}
          </label>
        ))}
        <Copy text={text} label={`Copy as ${way}`} />
      </p>
      <pre class="scroll code" tabIndex={0}>
        {text}
      </pre>
    </details>
  );
}
