"""What is left of one GPU's speed when JOS runs the work, and how busy is the GPU? Needs an NVIDIA GPU.

    python -m benchmarks.gpu [--rounds 3] [--small]

Four things, each against what one would write by hand on the same GPU: windows classified and records answered by a
language model, as jobs with one index against a bare loop in one process, which reads, computes and writes one after
the other; steps of a head's training; and nearest neighbours against the bare float32 product. Busy: the share of the
steady time in which the GPU ran anything, as its driver counts it (nvidia-smi, ten looks a second). The language model
has the shape of SmolLM2 135M and random weights: speed is asked here, not sense.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import activity, classify, data, harness, train
from benchmarks.harness import Report, Spread, bar, ray_head, rounds, run_job, sandbox, table
from benchmarks.knn import BAR, DIMS, REFERENCES, search
from jos.engine import Engine
from jos.settings import Settings

JOS, BARE = "JOS, one index", "bare loop, one process"
LEAST_OF_BARE, MOST_SLOWER, LEAST_STEPS = classify.LEAST_OF_BARE, activity.MOST_SLOWER, train.LEAST
DEVICE = "cuda"
BATCH = 16_384  # queries at once, as the worker has them on a GPU
VOCABULARY = 49_152
Result = dict[str, Any]


class Load:
    """Looks ten times a second at how busy the first GPU is."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []  # monotonic seconds, percent
        command = [
            "nvidia-smi",
            "--id=0",
            "--query-gpu=utilization.gpu",
            "--format=csv,noheader,nounits",
            "-lms",
            "100",
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append((time.monotonic(), float(line)))

    def between(self, began: float, ended: float) -> float:
        """Percent, on average of that time; the driver's own average lags by up to a sixth of a second."""
        seen = [percent for at, percent in self.seen if began <= at <= ended]
        return sum(seen) / len(seen) if seen else float("nan")

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


# --- windows ------------------------------------------------------------------------------------------


def classify_request(files: list[Path], shots: dict[str, Path], large: bool) -> dict[str, Any]:
    """With the pipeline's defaults, or with parts of ten times the windows, so that spans are larger."""
    request = data.classify_request("on a GPU", files, shots)
    worker = request["parameters"]["worker"]
    worker["parallelism"] = 1
    if large:
        worker["config"]["flush_every_n_iteration"] = 1000
    return request


def job_on_gpu(folder: Path, address: str, request: dict[str, Any], count: int, load: Load) -> Result:
    trace = run_job(folder, request, address)
    began, ended = trace.at["index_up_0"], trace.at["last_commit"]
    return {"rate": count / (ended - began), "busy": load.between(began, ended), "start": began - trace.spawned}


def classify_bare(folder: Path, job: dict[str, Any], count: int, load: Load) -> Result:
    out = folder / f"out-{time.monotonic_ns()}"
    written = out.with_suffix(".json")
    written.write_text(json.dumps(job))
    spawned = time.monotonic()
    found = harness.contender("benchmarks.classify_rivals", "bare", str(written), str(out))
    shutil.rmtree(out)
    assert found["windows"] == count, f"the bare loop made {found['windows']:.0f} of {count} windows"
    began, ended = found["began"], found["ended"]
    return {"rate": count / (ended - began), "busy": load.between(began, ended), "start": began - spawned}


def classified(
    report: Report, folder: Path, address: str, count: int, turns: int, load: Load, title: str, large: bool
) -> None:
    files, shots = data.sensor_files(folder / "windows", count)
    request = classify_request(files, shots, large)
    job = {
        "files": [str(path) for path in files],
        "shots": {state: str(path) for state, path in shots.items()},
        "config": classify.settings(request),
        "device": DEVICE,
        "workers": 1,
    }
    results = rounds(
        {
            JOS: partial(job_on_gpu, folder, address, request, count, load),
            BARE: partial(classify_bare, folder, job, count, load),
        },
        turns,
    )
    report.raw[f"windows, {title}"] = results
    report.add(table(["windows", *HEAD], compared(title, results)), told(f"Windows, {title}", results, LEAST_OF_BARE))


HEAD = ("", "a second, steady", "of the bare loop", "GPU busy, %", "start-up, s")


def compared(title: str, results: dict[str, list[Result]]) -> list[list[str]]:
    ratio = of_bare(results)
    return [
        [title, name, Spread.of([r["rate"] for r in runs]).text(0), ratio.text(3) if name == JOS else "1.000"]
        + [Spread.of([r[what] for r in runs]).text(digits) for what, digits in (("busy", 0), ("start", 1))]
        for name, runs in results.items()
    ]


def of_bare(results: dict[str, list[Result]]) -> Spread:
    return Spread.of([one["rate"] / other["rate"] for one, other in zip(results[JOS], results[BARE], strict=True)])


def told(what: str, results: dict[str, list[Result]], least: float) -> str:
    ratio = of_bare(results).median
    return f"{what}: {ratio:.3f} of the bare loop (at least {least:g}: {bar(ratio >= least)})."


# --- a language model ---------------------------------------------------------------------------------


def model(folder: Path) -> Path:
    """SmolLM2 135M's shape with random weights; its tokenizer knows the bytes, and names for all other tokens."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<end>": 0, **{c: n + 1 for n, c in enumerate(letters)}}
    words |= {f"<{n}>": n for n in range(len(words), VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)  # type: ignore[no-untyped-call]
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    return folder


def answer_job(folder: Path, address: str, file: Path, asked: dict[str, Any], count: int, load: Load) -> Result:
    found = job_on_gpu(folder, address, activity.request(file, asked), count, load)
    with Engine(Settings(home=folder / "home")) as engine:
        _, (job,) = engine.jobs(limit=1)
        (made,) = engine.outputs(job.id)
        return found | {"lines": engine.download(job.id, made, folder / job.id).read_bytes().splitlines()}


def answer_bare(folder: Path, file: Path, asked: dict[str, Any], count: int, load: Load) -> Result:
    out = folder / f"loop-{time.monotonic_ns()}.jsonl"
    spawned = time.monotonic()
    found = harness.contender("benchmarks.activity", "--loop", str(file), str(out), json.dumps(asked), DEVICE)
    began, ended = found["began"], found["ended"]
    result = {"rate": count / (ended - began), "busy": load.between(began, ended), "start": began - spawned}
    return result | {"lines": out.read_bytes().splitlines()}


def answered(report: Report, folder: Path, address: str, count: int, tokens: int, turns: int, load: Load) -> None:
    file = activity.records(folder / "pump.jsonl", count)
    asked = activity.settings(tokens, f"hf:{model(folder / 'model')}")
    results = rounds(
        {
            JOS: partial(answer_job, folder, address, file, asked, count, load),
            BARE: partial(answer_bare, folder, file, asked, count, load),
        },
        turns,
    )
    one, other = results[JOS][0]["lines"], results[BARE][0]["lines"]
    assert len(one) == len(other) == count
    again = sum(a == b for a, b in zip(one, results[JOS][-1]["lines"], strict=True)) / count
    same = sum(a == b for a, b in zip(one, other, strict=True)) / count
    for runs in results.values():
        for run in runs:
            del run["lines"]
    report.raw["records"] = results | {"same": same, "again": again}
    report.add(
        table(["records", *HEAD], compared(f"{count:,}, {tokens} new tokens each at most", results)),
        told("Records", results, 1 - MOST_SLOWER),
        f"Of the answers {100 * again:.1f} % are the same in JOS's first and last round, and {100 * same:.1f} % are "
        "the bare loop's, which sorts all records into batches and not span by span: neighbours change the last bits.",
    )


# --- training and neighbours --------------------------------------------------------------------------


def trained(report: Report, turns: int) -> None:
    speeds = train.measure(turns, DEVICE)
    ratio = Spread.of([one / other for one, other in zip(speeds[train.OWN], speeds[train.BARE], strict=True)])
    report.raw["training"] = speeds
    lines = [[name, Spread.of(some).text(0), ratio.text(3)] for name, some in speeds.items()]
    lines[1][2] = "1.000"
    report.add(
        table(["training of a head", "steps/s", "of the bare loop, round by round"], lines),
        f"Steps of a head: {ratio.median:.3f} of the bare loop (at least {LEAST_STEPS:g}: "
        f"{bar(ratio.median >= LEAST_STEPS)}); {turns} epochs of each, batches of 64.",
    )


def timed(run: Callable[[Tensor], object], asked: Tensor) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    for some in asked.split(BATCH):
        run(some)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def neighbours(report: Report, count: int, turns: int) -> None:
    random = torch.Generator(DEVICE).manual_seed(1)
    references, asked = (torch.randn(n, DIMS, generator=random, device=DEVICE) for n in (REFERENCES, count))
    found, out = search(references, index="exact"), torch.empty(BATCH, REFERENCES, device=DEVICE)
    results = rounds(
        {
            "bare product": lambda: timed(lambda some: torch.mm(some, references.T, out=out[: len(some)]), asked),
            "classes, votes of the k": lambda: timed(found.scores, asked),
            "neighbours and their distances": lambda: timed(found.neighbours, asked),
        },
        turns + 1,
    )
    results = {name: took[1:] for name, took in results.items()}  # the first warms up
    ratios = {
        name: Spread.of([one / other for one, other in zip(results["bare product"], took, strict=True)])
        for name, took in results.items()
    }
    report.raw["neighbours"] = results
    lines = [[n, Spread.of([count / one for one in took]).text(0), ratios[n].text(3)] for n, took in results.items()]
    met = ratios["classes, votes of the k"].median
    report.add(
        table(["nearest neighbours", "queries/s", "of the bare product"], lines),
        f"{count:,} queries in batches of {BATCH:,}, {REFERENCES:,} references of {DIMS:,} dimensions, 5 neighbours, "
        f"euclidean, float32: {met:.3f} of the bare product (at least {BAR:g}: {bar(met >= BAR)}).",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        harness.say("There is no NVIDIA GPU here: nothing was measured.")
        return
    few, turns = options.small, options.rounds
    report = Report("gpu", f"One {torch.cuda.get_device_name(0)}", few)
    report.add(
        f"Medians of {turns} interleaved rounds (least..most). Steady: from the index up, or the worker set up, to the "
        "last result durable. Windows: 9 channels, 64 rows, step 1, 8 files, CSV to CSV. Records: bfloat16, sampled."
    )
    windows = 100_000 if few else 1_000_000
    load = Load()
    with torch.inference_mode():
        neighbours(report, windows, turns)
    trained(report, 2 if few else 10)
    with sandbox() as folder, ray_head(8) as address:
        classified(report, folder, address, windows, turns, load, "the pipeline's defaults", large=False)
        report.write()  # each time: a lent GPU may be gone before the end
        answered(report, folder, address, 512 if few else 2048, 32, turns, load)
        report.write()
        classified(report, folder, address, windows, turns, load, "parts of 32,000 windows", large=True)
    load.end()
    report.write()


if __name__ == "__main__":
    main()
