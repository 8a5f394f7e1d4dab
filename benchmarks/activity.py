"""Records a language model answers a second: JOS against the engine's own loop over the same records and settings.

    python -m benchmarks.activity [--rounds 5] [--small] [--records 60] [--tokens 24]

The built-in model, one index with one thread. The loop has the same engine in a process of its own, hands it all
records in one call, and writes the same lines; what JOS adds is spans, commits and output parts. Both must give the
same bytes. Steady = from the model loaded to the last answer durable; the start-up before it is told apart. Bar:
steady, JOS at most 3 % slower, the median of the rounds' own ratios, for neighbouring runs share what else the machine
does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import Report, Spread, bar, bars, ray_head, rounds, run_job, sandbox, table

JOS, BARE = "JOS", "the engine's own loop"
MOST_SLOWER = 0.03
SYSTEM = (
    "You watch a pump. Flow is in L/min, pressure in kPa, vibration in mm/s. Say what it does, and what to look at."
)
Result = dict[str, Any]


def records(file: Path, count: int) -> Path:
    """Readings of a made-up pump, all different."""
    asked = [
        {
            "system": SYSTEM,
            "instruction": "Describe the pump's state.",
            "prompt": f"flow {n * 37 % 500}.{n % 10}, pressure {90 + n * 53 % 700}, vibration {n * 29 % 97 / 10}",
        }
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in asked))
    return file


def settings(tokens: int, model: str = "smollm2-135m-instruct") -> dict[str, Any]:
    generation = {"do_sample": True, "max_new_tokens": tokens, "temperature": 0.7, "top_k": 40, "top_p": 0.95}
    return {"model_variant": model, "generation": generation, "seed": 7}


def request(file: Path, asked: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "records",
        "pipeline_key": "activity-detection",
        "inputs": {"worker.data": [{"file_id": str(file)}]},
        "parameters": {"worker": {"parallelism": 1, "config": asked}},
    }


# --- the contenders -----------------------------------------------------------------------------------


def of_jos(folder: Path, address: str, file: Path, tokens: int) -> Result:
    before = outputs(folder)
    trace = run_job(folder, request(file, settings(tokens)), address)
    (made,) = outputs(folder) - before
    digest, up = hashlib.sha256(made.read_bytes()).hexdigest(), trace.at["index_up_0"]
    return {"steady": trace.at["last_commit"] - up, "start": up - trace.spawned, "total": trace.total, "digest": digest}


def outputs(folder: Path) -> set[Path]:
    """The jobs' output files."""
    return {path for path in (folder / "home").rglob("outputs/**/*") if path.is_file()}


def of_loop(folder: Path, file: Path, tokens: int) -> Result:
    out = folder / f"loop-{time.monotonic_ns()}.jsonl"
    began = time.monotonic()
    result = harness.contender("benchmarks.activity", "--loop", str(file), str(out), json.dumps(settings(tokens)))
    total = time.monotonic() - began
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    return {"steady": result["steady"], "start": total - result["steady"], "total": total, "digest": digest}


def loop(file: str, out: str, asked: str, device: str = "cpu") -> None:
    """In a fresh process: one line of JSON, from when (the model loaded) to when (the last byte on the disk)."""
    from actors.activity import Settings
    from actors.engines import Answer, Place, make_engine
    from actors.prompts import read_prompt

    chosen = Settings.of(json.loads(asked))
    place = Place(device, 1, chosen.generation, None, {}, 16, threading.Event(), warn=lambda *_, **__: None)
    engine = make_engine(chosen.model_variant, place)
    began = time.monotonic()
    prompts = [read_prompt(json.loads(line), chosen.seed) for line in Path(file).read_text().splitlines()]
    answers = engine.answer(prompts)
    with Path(out).open("w") as written:
        for number, answer in enumerate(answers):
            assert isinstance(answer, Answer)
            line = {"line_index": number, "prediction": answer.text}
            written.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
        written.flush()
        os.fsync(written.fileno())
    ended = time.monotonic()
    print(json.dumps({"steady": ended - began, "began": began, "ended": ended}))


# --- the report ---------------------------------------------------------------------------------------


def report(results: dict[str, list[Result]], count: int, tokens: int, small: bool) -> None:
    digests = {run["digest"] for runs in results.values() for run in runs}
    assert len(digests) == 1, "JOS and the loop gave different bytes"
    slower = Spread.of([a["steady"] / b["steady"] - 1 for a, b in zip(results[JOS], results[BARE], strict=True)])
    rate = {name: Spread.of([count / run["steady"] for run in runs]) for name, runs in results.items()}
    rows = [
        [
            name,
            rate[name].text(3),
            Spread.of([run["start"] for run in runs]).text(),
            Spread.of([run["total"] for run in runs]).text(),
        ]
        for name, runs in results.items()
    ]
    out = Report("activity", "Records that a language model answers a second, one index of one thread", small)
    out.raw = {"records": count, "tokens": tokens, "runs": results}
    out.add(
        table(["", "records/s, steady", "start-up, s", "whole process, s"], rows),
        f"JOS is {100 * slower.median:.1f} % ({100 * slower.least:.1f}..{100 * slower.most:.1f}) slower, steady "
        f"(at most {100 * MOST_SLOWER:.0f} %): {bar(slower.median <= MOST_SLOWER)}. Both gave the same bytes.",
        f"SmolLM2 135M, {count} records, at most {tokens} new tokens each; medians of {len(results[JOS])} interleaved "
        "rounds (least..most). JOS with a Ray head up. Steady: from the model loaded to the last answer durable.",
    )
    out.write(lambda axes: bars(axes, rate, "records a second, steady"))


def main() -> None:
    if sys.argv[1:2] == ["--loop"]:
        loop(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--small", action="store_true", help="a tenth of the records")
    arguments = parser.parse_args()
    count = max(arguments.records // 10, 4) if arguments.small else arguments.records
    with sandbox() as folder, ray_head() as address:
        file = records(folder / "pump.jsonl", count)
        contenders = {
            JOS: partial(of_jos, folder, address, file, arguments.tokens),
            BARE: partial(of_loop, folder, file, arguments.tokens),
        }
        results = rounds(contenders, arguments.rounds)
    report(results, count, arguments.tokens, arguments.small)


if __name__ == "__main__":
    main()
