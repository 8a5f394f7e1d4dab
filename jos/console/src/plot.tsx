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

export function Plot({ x, curves, time, label }: { x: number[]; curves: Curve[]; time: boolean; label: string }) {
  const box = useRef<HTMLDivElement>(null);
  const drawn = useRef<uPlot | null>(null);
  const names = JSON.stringify(curves.map((curve) => [curve.name, curve.scale]));
  useEffect(() => {
    const host = box.current!;
    const colour = (name: string) => getComputedStyle(host).getPropertyValue(name).trim() || "#888";
    const axis = () => ({ stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } });
    const scales = [...new Set(curves.map((curve) => curve.scale ?? "y"))];
    drawn.current = new uPlot(
      {
        width: host.clientWidth || 600,
        height: HEIGHT,
        scales: { x: { time } },
        series: [{}, ...curves.map((curve, at) => ({ label: curve.name, scale: curve.scale ?? "y", stroke: colour(HUES[at % HUES.length]!), width: 1.5, spanGaps: true }))],
        axes: [axis(), ...scales.map((scale, at) => ({ ...axis(), scale, side: at === 0 ? (3 as const) : (1 as const) }))],
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
