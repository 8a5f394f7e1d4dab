// Curves. uPlot draws them on a canvas; the figures are said in words beside it for those who cannot see it.
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";

export interface Curve {
  name: string;
  values: (number | null)[];
  scale?: string;
}

const HUES = ["--blue", "--orange", "--green", "--purple", "--red"];
const HEIGHT = 200;

interface Drawn {
  x: number[];
  curves: Curve[];
  time: boolean;
  label: string;
  steps?: string[]; // what the values 0, 1, 2 … of the one curve are called; drawn as steps
}

export function Plot({ x, curves, time, label, steps }: Drawn) {
  const box = useRef<HTMLDivElement>(null);
  const drawn = useRef<uPlot | null>(null);
  const names = JSON.stringify([steps, curves.map((curve) => [curve.name, curve.scale])]);
  useEffect(() => {
    const host = box.current!;
    const colour = (name: string) => getComputedStyle(host).getPropertyValue(name).trim() || "#888";
    const axis = () => ({ stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } });
    const side = (scale: string, at: number): uPlot.Axis => ({ ...axis(), scale, size: 70, side: at === 0 ? 3 : 1, ...(steps ? named(steps) : {}) });
    const scales = [...new Set(curves.map((curve) => curve.scale ?? "y"))];
    drawn.current = new uPlot(
      {
        width: host.clientWidth || 600,
        height: HEIGHT,
        scales: { x: { time }, ...(steps ? { y: { range: [-0.5, steps.length - 0.5] as [number, number] } } : {}) },
        series: [{}, ...curves.map((curve, at) => ({ label: curve.name, scale: curve.scale ?? "y", stroke: colour(HUES[at % HUES.length]!), width: 1.5, spanGaps: true, ...(steps ? stepped(steps) : {}) }))],
        axes: [axis(), ...scales.map(side)],
      },
      data(x, curves),
      host,
    );
    const fits = new ResizeObserver(() => drawn.current?.setSize({ width: host.clientWidth, height: HEIGHT }));
    fits.observe(host);
    return () => {
      fits.disconnect();
      drawn.current?.destroy();
      drawn.current = null;
    };
  }, [names, time]);
  useEffect(() => drawn.current?.setData(data(x, curves)), [x, curves]);
  return <div class="plot" ref={box} role="img" aria-label={label} />;
}

function data(x: number[], curves: Curve[]): uPlot.AlignedData {
  return [x, ...curves.map((curve) => curve.values)] as uPlot.AlignedData;
}

function stepped(steps: string[]): Partial<uPlot.Series> {
  return { paths: uPlot.paths.stepped!({ align: 1 }), value: (_, at) => steps[at ?? -1] ?? "" };
}

function named(steps: string[]): Partial<uPlot.Axis> {
  return { size: 110, splits: steps.map((_, at) => at), values: (_, splits) => splits.map((at) => (steps[at] ?? "").slice(0, 14)) };
}
