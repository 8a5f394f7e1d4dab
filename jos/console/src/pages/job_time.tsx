// Attempts and indexes on one time line: when the job waited, ran, was preempted, and what each index did meanwhile.
import { clock, duration } from "../format";
import type { Span, Story } from "../story";

const WIDTH = 1000; // units of the drawing
const SHOWN = 64; // lanes

export function TimeLine({ story, end }: { story: Story; end: number }) {
  const begin = story.attempts[0]?.from ?? end;
  const length = Math.max(1, end - begin);
  const lanes = [...story.lanes].sort(([a], [b]) => a - b);
  const lives = lanes.reduce((sum, [, spans]) => sum + spans.filter((span) => span.state === "lost").length, 0);
  return (
    <section aria-label="Time line">
      <h2>Time line</h2>
      <div class="lanes">
        <Lane name="job" spans={story.attempts} begin={begin} length={length} end={end} />
        {lanes.slice(0, SHOWN).map(([index, spans]) => (
          <Lane key={index} name={`index ${index}`} spans={spans} begin={begin} length={length} end={end} />
        ))}
        <span />
        <small class="row axis">
          <span>{clock(new Date(begin).toISOString())}</span>
          <span>{duration(length / 1000)}</span>
          <span>{clock(new Date(end).toISOString())}</span>
        </small>
      </div>
      <p class="legend">
        {["waiting", "admitted", "running", "leaving"].map((state) => (
          <small key={state}>
            <svg viewBox="0 0 10 10" width="10" height="10" aria-hidden="true">
              <rect class={`span ${state}`} width="10" height="10" />
            </svg>{" "}
            {{ waiting: "waits", admitted: "starts", running: "runs", leaving: "leaves, or an index is lost" }[state]}
          </small>
        ))}
      </p>
      {lanes.length > SHOWN && <p>{lanes.length - SHOWN} more indexes are not drawn.</p>}
      {lives > 0 && <p>{lives === 1 ? "One index was lost; its work was given out again." : `Indexes were lost ${lives} times; their work was given out again.`}</p>}
    </section>
  );
}

function Lane({ name, spans, begin, length, end }: { name: string; spans: readonly Span[]; begin: number; length: number; end: number }) {
  const x = (at: number) => ((at - begin) / length) * WIDTH;
  const said = spans.map((span) => `${span.state} ${duration(((span.to ?? end) - span.from) / 1000)}`).join(", ");
  return (
    <>
      <span class="lane-name">{name}</span>
      <svg viewBox={`0 0 ${WIDTH} 16`} preserveAspectRatio="none" role="img" aria-label={`${name}: ${said || "nothing yet"}`}>
        {spans.map((span) => (
          <rect key={span.from} class={`span ${span.state}`} x={x(span.from)} y={1} height={14} width={Math.max(2, x(span.to ?? end) - x(span.from))}>
            <title>
              {`${span.state} from ${clock(new Date(span.from).toISOString())}, ${duration(((span.to ?? end) - span.from) / 1000)}${span.end ? `: ${span.end}` : ""}`}
            </title>
          </rect>
        ))}
      </svg>
    </>
  );
}
