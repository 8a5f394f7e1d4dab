"""What does JOS's training of a head cost over a bare torch loop on the same embeddings? Steps a second, side by side.

    python -m benchmarks.train [--rounds 30] [--small]

Both do the same work: batches of 64 out of 20,000 embeddings of 128 dimensions, linear layer, weighted cross-entropy
with smoothing, AdamW with warm-up and cosine, the loss read every step, validation every epoch. The bare loop is what
one would write by hand: it cannot be stopped and resumed, and knows no ranks. A round is an epoch of each, in one
process with one thread, in turn and by turns first: a step takes a third of a millisecond, and a machine's moods would
outweigh what is asked here if the two ran minutes apart. Writes benchmarks/results/train.md and .json.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from actors.head import HeadSettings, HeadTraining
from benchmarks.harness import Report, Spread, bar, table

WINDOWS, VALIDATION, DIMS, CLASSES = 20_000, 2_000, 128, 4
LEAST = 0.95  # of the bare loop's steps a second
OWN, BARE = "JOS, HeadTraining", "bare torch loop"


def embeddings() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(WINDOWS + VALIDATION, DIMS, generator=generator)
    labels = (rows[:, :CLASSES] + torch.randn(len(rows), CLASSES, generator=generator)).argmax(1)
    return rows[:WINDOWS], labels[:WINDOWS], rows[WINDOWS:], labels[WINDOWS:]


def own(settings: HeadSettings, device: str) -> Iterator[None]:
    """An epoch each time it is asked."""
    made = HeadTraining(*embeddings(), CLASSES, settings, seed=0, device=device)
    for epoch in range(settings.epochs):
        for nth in range(made.steps_per_epoch):
            made.step(epoch * made.steps_per_epoch + nth)
        yield


def bare(settings: HeadSettings, device: str) -> Iterator[None]:
    train, labels, validation, truth = (some.to(device) for some in embeddings())
    size, smooth = settings.batch_size, settings.label_smoothing
    weight = len(labels) / (CLASSES * labels.bincount(minlength=CLASSES).float())
    model = torch.nn.Linear(DIMS, CLASSES, device=device)
    rate = settings.learning_rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=settings.weight_decay, fused=True)
    total = settings.epochs * -(-len(train) // size)
    warm, step = int(settings.warmup * total), 0
    for _ in range(settings.epochs):
        order = torch.randperm(len(train), device=device)
        for at in range(0, len(train), size):
            batch = order[at : at + size]
            part = (
                (step + 1) / (warm + 1) if step < warm else (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2
            )
            optimizer.param_groups[0]["lr"] = rate * part
            optimizer.zero_grad()
            loss = F.cross_entropy(model(train[batch]), labels[batch], weight, label_smoothing=smooth)
            loss.backward()
            optimizer.step()
            loss.item()
            step += 1
        with torch.no_grad():
            logits = model(validation)
            (F.cross_entropy(logits, truth).item(), (logits.argmax(1) == truth).double().mean().item())
        yield


CONTENDERS: dict[str, Callable[[HeadSettings, str], Iterator[None]]] = {OWN: own, BARE: bare}


def measure(count: int, device: str = "cpu") -> dict[str, list[float]]:
    """Steps a second of each round; one round before them warms up."""
    settings = HeadSettings(epochs=count + 1, patience=count + 1)
    running = {name: make(settings, device) for name, make in CONTENDERS.items()}
    steps = -(-WINDOWS // settings.batch_size)
    speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    turns = itertools.cycle([list(CONTENDERS), list(CONTENDERS)[::-1]])
    for _ in range(count + 1):
        for name in next(turns):
            begin = time.perf_counter()
            next(running[name])
            speeds[name].append(steps / (time.perf_counter() - begin))
    return {name: some[1:] for name, some in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    speeds = measure(options.rounds)
    ratio = Spread.of([one / other for one, other in zip(speeds[OWN], speeds[BARE], strict=True)])
    report = Report("train", "Steps of a head's training a second", options.small)
    report.raw = dict(speeds)
    rows = [
        [OWN, Spread.of(speeds[OWN]).text(0), ratio.text(3)],
        [BARE, Spread.of(speeds[BARE]).text(0), "1.000"],
    ]
    report.add(
        table(["", "steps/s", "of the bare loop, round by round"], rows),
        f"{ratio.median:.3f} of the bare loop (at least {LEAST}): {bar(ratio.median >= LEAST)}.",
        f"Medians of {options.rounds} interleaved rounds (least..most), an epoch of {-(-WINDOWS // 64)} steps of each; "
        f"{DIMS} dimensions, batches of 64, one thread.",
    )
    report.write()


if __name__ == "__main__":
    main()
