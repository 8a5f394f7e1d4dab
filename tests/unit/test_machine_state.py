"""The worker of machine-state-classification as an index drives it, on real bytes and the real encoder."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import IO, Any

import numpy as np
import pytest
from devices import DEVICE, of_cpu
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import machine_state
from actors.encoders import ENCODERS
from actors.machine_state import MachineStateWorker
from jos.worker import Context, InputInvalid, JobImpossible, Output, Plan, Span


@dataclass
class Memory:
    """A Source over bytes."""

    data: bytes
    filename: str = "sensor.csv"
    id: str = "inp_1"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return len(self.data)

    def open(self) -> IO[bytes]:
        return io.BytesIO(self.data)

    def read_range(self, start: int, end: int) -> bytes:
        return self.data[start:end]


def table(rows: int, level: float, seed: int, time: str = "{}") -> bytes:
    """Two noisy channels around a level; a third column that nobody asks for."""
    random = np.random.default_rng(seed)
    lines = [
        f"{time.format(1_400_000_000 + row)},{level + a:.4f},idle,{-level + b:.4f}"
        for row, (a, b) in enumerate(random.normal(0, 0.3, (rows, 2)))
    ]
    return "\n".join(["DATE_TIME,HKLD,note,RPM", *lines, ""]).encode()


READER = ("data_columns", "timestamp_column", "window_size", "step_size")
CLASSIFIER = ("n_neighbors", "metric", "weights", "normalize_embeddings")
LOW = Memory(table(60, 0, 1), "low.csv", "inp_low", {"class": "low, slow"})
HIGH = Memory(table(60, 5, 2), "high.csv", "inp_high", {"class": "high"})


def make(
    shots: list[Memory] | None = None,
    said: list[Any] | None = None,
    setup: bool = True,
    checkpoint: Memory | None = None,
    **changes: Any,
) -> MachineStateWorker:
    config: dict[str, Any] = {
        "model_type": "stats",
        "batch_size": 8,
        "flush_every_n_iteration": 100,
        "reader_config": {
            "data_columns": ["HKLD", "RPM"],
            "timestamp_column": "DATE_TIME",
            "window_size": 16,
            "step_size": 1,
        },
        "classifier_config": {"n_neighbors": 5, "weights": "distance"},
        "omega_1_5": {"base_model_path": "/nowhere"},
        "data_source": {"source_type": "csv"},
    }
    for key, value in changes.items():
        part = "reader_config" if key in READER else "classifier_config" if key in CLASSIFIER else None
        (config[part] if part else config)[key] = value
    worker = MachineStateWorker()
    worker.context = Context(
        config=config,
        index=0,
        device=DEVICE,
        threads=1,
        inputs={
            "worker.n_shots": [LOW, HIGH] if shots is None else shots,
            "worker.fine_tune_checkpoint": [checkpoint] if checkpoint else [],
        },
        emit=lambda *event: (said if said is not None else []).append(event),
        stopping=threading.Event(),
    )
    if setup:
        worker.setup()
    return worker


def run_span(worker: MachineStateWorker, source: Memory, span: Span) -> Output:
    data = worker.read(source, span)
    assert len(data) == len(span)
    size = worker.batch_size
    results = [worker.compute(data[at : at + size]) for at in range(0, len(data), size)]
    return worker.write(source, span, data, results)


def run(worker: MachineStateWorker, source: Memory, cuts: list[int] | None = None) -> tuple[Plan, str, dict[int, str]]:
    """The plan, all rows and all failures. `cuts` splits planned spans further, as JOS does after failures."""
    plan = worker.plan(source)
    hints = json.loads(json.dumps(list(plan.hints)))
    body, failures = b"", {}
    for hint, (start, end) in zip(hints, itertools.pairwise(plan.bounds), strict=True):
        inner = sorted({start, end, *(cut for cut in cuts or [] if start < cut < end)})
        for first, last in itertools.pairwise(inner):
            output = run_span(worker, source, Span(first, last, hint, start, end))
            body += output.body
            failures |= output.failures
    return plan, body.decode(), failures


@pytest.fixture(scope="module")
def worker() -> MachineStateWorker:
    return make()


# --- what a user gets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(16, 185), (64, 137), (128, 73)])
def test_a_file_of_200_rows_gives_one_prediction_per_window(size: int, count: int) -> None:
    shots = [Memory(table(140, level, 3), f"{level}.csv", f"inp_{level}", {"class": str(level)}) for level in (0, 5)]
    source = Memory(table(200, 5, 4))
    plan, body, failures = run(make(shots, window_size=size), source)
    rows = list(csv.reader(io.StringIO(plan.header.decode() + body)))
    assert rows[0] == ["DATE_TIME", "Prediction", "p_0", "p_5"]
    assert plan.tasks == len(rows) - 1 == count
    assert [row[0] for row in rows[1:]] == [str(1_400_000_000 + row) for row in range(count)]
    assert {row[1] for row in rows[1:]} == {"5"}
    assert not failures
    assert plan.output_name == "{input_id}_output_{stem}_part_{part}.csv"


def test_states_follow_the_data_and_scores_sum_to_one(worker: MachineStateWorker) -> None:
    source = Memory(table(40, 0, 5) + table(40, 5, 6).split(b"\n", 1)[1])
    plan, body, _ = run(worker, source)
    rows = list(csv.DictReader(io.StringIO(plan.header.decode() + body)))
    states = [row["Prediction"] for row in rows]
    assert states[:24] == ["low, slow"] * 24
    assert states[-24:] == ["high"] * 24
    for row in rows:
        assert float(row["p_high"]) + float(row["p_low, slow"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("time", ["28/12/2015 10:29:14 AM {}", '"a ""b"", {}"', "  {} ", '"two\nlines {}"', "é{}"])
def test_timestamps_pass_through_untouched(worker: MachineStateWorker, time: str) -> None:
    source = Memory(table(40, 0, 7, time))
    _, body, _ = run(worker, source)
    wanted = [row[0] for row in csv.reader(io.StringIO(source.data.decode(), newline=""))][1:26]
    assert [row[0] for row in csv.reader(io.StringIO(body, newline=""))] == wanted


def test_a_part_holds_batch_size_times_flush_windows() -> None:
    worker = make(batch_size=5, flush_every_n_iteration=4)
    plan, body, _ = run(worker, Memory(table(80, 5, 8)))
    assert plan.part_tasks == 20
    assert plan.bounds == [0, 20, 40, 60, 65]
    assert body.count("\n") == 65


def test_a_file_within_a_part_is_one_span_if_that_is_short_and_else_spans_of_half_a_second() -> None:
    plan = make().plan(Memory(table(200, 0, 1)))
    assert plan.bounds == [0, 185]
    long = Memory(table(100_000, 0, 1))
    worker = make(batch_size=1000)
    sizes = np.diff(worker.plan(long).bounds)
    seconds = worker.embedder.seconds() + worker.classifier.seconds()
    assert 0.2 < sizes.max() * seconds < 1
    assert len(sizes) == -(-99_985 // sizes[0])


def test_steps_take_the_first_row_of_each_window() -> None:
    _, body, _ = run(make(step_size=7), Memory(table(80, 5, 8)))
    assert [line.split(",")[0] for line in body.splitlines()] == [str(1_400_000_000 + 7 * i) for i in range(10)]


@of_cpu
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("size", [16, 50])
def test_two_indexes_and_any_cut_give_the_same_bytes(encoder: str, size: int) -> None:
    source = Memory(table(320, 2.5, 9))
    workers = [make(model_type=encoder, window_size=size) for _ in range(2)]
    _, whole, _ = run(workers[0], source)
    assert run(workers[1], source)[1] == whole
    assert run(workers[1], source, cuts=[1, 2, 50, 131, 200])[1] == whole


@of_cpu
@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=4), step=st.sampled_from([1, 3]), span=st.sampled_from([9, 40]))
def test_spans_cut_anywhere_give_the_same_bytes(cuts: list[int], step: int, span: int) -> None:
    source = Memory(BAD)
    wanted = WHOLE.setdefault(step, run(make(step_size=step), source)[1:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_state.MachineStateWorker, "_span_tasks", lambda *_: span)
        assert run(make(step_size=step), source, cuts)[1:] == wanted


BAD = table(150, 2.5, 10).replace(b"\n1400000070,", b"\n\n1400000070,x").replace(b"idle", b'"id\nle"')
WHOLE: dict[int, Any] = {}


GOLDEN = {
    "hydra": "2722668e3fb1d565cbb0c4a21d052de1b2943e5be184c73c23f875b8c7fdf8c1",
    "rocket": "bc3c167a1cfe7944561d33fbb48985b17ad54978cfa9869275d08a254638ad90",
    "stats": "912cfde27a22c9f007dc9e3ad26695fffa6140f1fc3badf2585bf38803e989d8",
}


@of_cpu
@pytest.mark.parametrize("encoder", GOLDEN)
def test_results_of_a_published_version_stay_as_they_were(encoder: str) -> None:
    """The bytes that the first release wrote for these files: three states that overlap, of files unlike in length."""
    shots = [
        Memory(table(rows, level, seed), f"{seed}.csv", f"inp_{seed}", {"class": f"state {level}"})
        for seed, (level, rows) in enumerate([(0, 70), (0.2, 90), (0.4, 50), (0, 33), (0.4, 16)])
    ]
    source = Memory(spoil(table(150, 0.2, 77), 50, b"1400000049,abc,idle,1"))
    plan, body, _ = run(make(shots, model_type=encoder, weights="uniform", step_size=3), source)
    assert hashlib.sha256(plan.header + body.encode()).hexdigest() == GOLDEN[encoder]


# --- bad data --------------------------------------------------------------------------------------------


def spoil(data: bytes, row: int, line: bytes) -> bytes:
    lines = data.split(b"\n")
    return b"\n".join([*lines[:row], line, *lines[row + 1 :]])


def test_a_bad_cell_fails_the_windows_that_touch_it_and_they_keep_their_place(worker: MachineStateWorker) -> None:
    good = table(100, 5, 11)
    source = Memory(spoil(good, 50, b"1400000049,abc,idle,1"))
    _, body, failures = run(worker, source)
    why = "sensor.csv row 50 (line 51), column 'HKLD': 'abc' is not a number"
    assert failures == dict.fromkeys(range(34, 50), why)
    wanted = run(worker, Memory(good, id="inp_2"))[1].splitlines()
    for at in range(34, 50):
        wanted[at] = f"{1_400_000_000 + at},,,"
    assert body.splitlines() == wanted


@pytest.mark.parametrize("line", [b"1400000049,,idle,1", b"1400000049,inf,idle,1", b"1400000049,1", b"\xff,1,idle,1"])
def test_gaps_infinities_ragged_rows_and_broken_text_fail_alike(worker: MachineStateWorker, line: bytes) -> None:
    source = Memory(spoil(table(100, 5, 11), 50, line), id=repr(line))
    _, body, failures = run(worker, source)
    touched = range(49, 50) if line.startswith(b"\xff") else range(34, 50)
    assert list(failures) == list(touched)
    assert body.count("\n") == 85
    assert body.splitlines()[49].endswith(",,,")


def test_tasks_that_jos_gave_up_get_blank_rows(worker: MachineStateWorker) -> None:
    assert worker.failed(LOW, Span(3, 5), "it crashed") == b",,,\n" * 2


def test_a_file_shorter_than_a_window_has_no_tasks_and_says_so(worker: MachineStateWorker) -> None:
    plan = worker.plan(Memory(table(15, 0, 1), id="inp_short"))
    assert plan.bounds == [0]
    assert plan.tasks == 0
    assert plan.message == "sensor.csv has 15 rows, fewer than one window of 16."


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "is empty"), (b"\x1f\x8b\x08\0", "Decompress"), (b"a,b\n1,2\n", "no column 'HKLD'"), (b"\0\1\2", "binary")],
)
def test_an_input_that_cannot_be_read_fails_alone(worker: MachineStateWorker, data: bytes, said: str) -> None:
    with pytest.raises(InputInvalid) as caught:
        worker.plan(Memory(data, id=said))
    assert said in str(caught.value)


# --- jobs that cannot be -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shots", "said"),
    [
        ([], "two or more classes; there are none"),
        ([LOW], "only 'low, slow'"),
        ([LOW, Memory(HIGH.data, "high.csv")], "high.csv has no class"),
        ([LOW, Memory(b"a,b\n1,2\n", "high.csv", metadata={"class": "high"})], "high.csv has no column 'HKLD'"),
        ([LOW, Memory(table(9, 1, 1), "high.csv", metadata={"class": "high"})], "class 'high' hold no window"),
        (
            [Memory(table(16, 1, 1), f"{at}.csv", metadata={"class": str(at)}) for at in range(2)],
            "n_neighbors is 5, but the n-shot files hold only 2 windows",
        ),
        (
            [LOW, Memory(spoil(HIGH.data, 7, b"1,2,3,x"), "high.csv", metadata={"class": "high"})],
            "high.csv row 7 (line 8), column 'RPM': 'x' is not a number, in an n-shot file of class 'high'",
        ),
    ],
)
def test_n_shots_that_cannot_teach_stop_the_job_with_the_reason(shots: list[Memory], said: str) -> None:
    with pytest.raises(JobImpossible) as caught:
        make(shots)
    assert said in str(caught.value)


def test_n_shots_have_a_limit_in_sum_and_the_file_that_passes_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_state, "MOST_CELLS", 2 * 2 * 60)
    make([LOW, HIGH])
    monkeypatch.setattr(machine_state, "MOST_CELLS", 2 * 2 * 60 - 1)
    with pytest.raises(JobImpossible, match=r"high\.csv has 120 cells .* files before it 120") as caught:
        make([LOW, HIGH])
    assert "Give fewer or shorter n-shot files" in str(caught.value)
    monkeypatch.setattr(machine_state, "MOST_CELLS", 2 * 60 - 1)
    with pytest.raises(JobImpossible, match=r"low\.csv has 60 rows and .* bytes, too many for an n-shot file"):
        make([LOW, HIGH])


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(JobImpossible, match=r"'gpt'.*hydra, rocket, stats, auto, omega_\*"):
        make(model_type="gpt")


def test_a_hosted_model_is_replaced_and_the_owner_told() -> None:
    said: list[Any] = []
    worker = make(said=said, model_type="omega_1_4_base")
    assert worker.settings.encoder in said[0][2]
    assert said[0][:2] == ("model.substituted", "WARN")


def test_an_automatic_choice_is_made_once_for_all_indexes() -> None:
    kept: dict[str, bytes] = {}
    made: list[str] = []

    def once(name: str, make: Callable[[], bytes]) -> bytes:
        if name not in kept:
            made.append(name)
            kept[name] = make()
        return kept[name]

    shots = [
        Memory(table(60, level, seed), f"{seed}.csv", f"inp_{seed}", {"class": str(level)})
        for seed, level in enumerate([0, 5, 0, 5, 0, 5])
    ]
    source = Memory(table(60, 5, 9))
    results = []
    for _ in range(2):
        worker = make(shots, setup=False, model_type="auto")
        worker.context = replace(worker.context, once=once)
        worker.setup()
        results.append(run(worker, source)[1])
    assert made == ["embedder"]
    assert results[0] == results[1]
    assert {line.split(",")[1] for line in results[0].splitlines()} == {"5"}


def test_classes_may_have_several_files_and_short_ones_among_them() -> None:
    more = Memory(table(5, 0, 3), "short.csv", "inp_short", {"class": "high"})
    worker = make([LOW, HIGH, more, Memory(HIGH.data, "h2.csv", "inp_h2", {"class": "high"})])
    assert len(worker.classifier.tensors()["references"]) == 3 * 45
    assert worker.classes == ["high", "low, slow"]


def test_real_movements_are_told_apart() -> None:
    """Six channels of a wrist, four activities: an n-shot file per training series, one window each."""
    datasets = pytest.importorskip("sktime.datasets")
    files: dict[str, list[Memory]] = {}
    for split in ("train", "test"):
        values, labels = datasets.load_basic_motions(split=split, return_X_y=True, return_type="numpy3d")
        files[split] = [
            Memory(
                "\n".join(
                    ["t,a,b,c,d,e,f", *(f"{at},{','.join(map(str, row))}" for at, row in enumerate(series.T))]
                ).encode(),
                id=f"inp_{split}{number}",
                metadata={"class": label},
            )
            for number, (series, label) in enumerate(zip(values, labels, strict=True))
        ]
    worker = make(
        files["train"], model_type="omega_1_5_base", data_columns=list("abcdef"), timestamp_column="t", window_size=100
    )
    states = [run(worker, source)[1].split(",")[1] for source in files["test"]]
    right = sum(state == source.metadata["class"] for state, source in zip(states, files["test"], strict=True))
    assert right >= 37, f"{right} of 40"


def test_a_rare_placeholder_in_the_n_shots_does_not_drown_the_scale() -> None:
    source = Memory(table(100, 5, 12))
    holes = Memory(spoil(HIGH.data, 59, b"1,-999.25,idle,-999.25"), "high.csv", metadata={"class": "high"})
    assert {line.split(",")[1] for line in run(make([LOW, holes]), source)[1].splitlines()} == {"high"}
