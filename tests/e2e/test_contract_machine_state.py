"""Section 7 of the wire contract over real HTTP with a plain HTTP library: what clients of machine-state-classification
send, and what they count on in its results. The pipeline is the one that is shipped."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs_lab import Head
from service_lab import Service

ROWS = 200
SHIPPED = Path(__file__).parents[2] / "pipelines"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ray_jobs: Head) -> Iterator[Service]:
    settings = {"JOS_WARM_DRIVERS": "1"}
    one = Service(tmp_path_factory.mktemp("states"), ray_jobs, settings=settings, pipelines=SHIPPED)
    try:
        one.start()
        one.upload("calm.csv", sensor(0, 150, 1.0), "text/csv")
        one.upload("wild.csv", sensor(100, 150, 9.0), "text/csv")
        one.upload("day.csv", sensor(0, 100, 1.0) + sensor(100, 100, 9.0).partition(b"\n")[2], "text/csv")
        yield one
    finally:
        one.close()


def sensor(start: int, rows: int, size: float) -> bytes:
    """Two channels that swing with `size`, an integer time and a day's text."""
    lines = [
        f"{t},{size * math.sin(t / 2):.4f},{size * math.cos(t / 3):.4f},28/12/2015 {t // 60:02d}:{t % 60:02d}:14 AM"
        for t in range(start, start + rows)
    ]
    return "\n".join(["DATE_TIME,a,b,told", *lines, ""]).encode()


def request(*files: str, n_shots: dict[str, str] | None = None, **config: Any) -> dict[str, Any]:
    reader = {"data_columns": ["a", "b"], "timestamp_column": "DATE_TIME", "window_size": 16, "step_size": 1}
    reader |= config.pop("reader", {})
    shots = {"calm.csv": "calm", "wild.csv": "wild"} if n_shots is None else n_shots
    return {
        "name": "states",
        "pipeline_type": "batch",
        "pipeline_key": "machine-state-classification",
        "inputs": {
            "worker.inference": [{"file_id": f} for f in files],
            "worker.n_shots": [{"file_id": f, "metadata": {"class": c}} for f, c in shots.items()],
        },
        "parameters": {
            "worker": {
                "parallelism": 1,
                "config": {
                    "model_type": "omega_1_4_base",
                    "batch_size": 32,
                    "reader_config": reader,
                    "classifier_config": {"n_neighbors": 5, "metric": "euclidean", "weights": "uniform"},
                    "flush_every_n_iteration": 100,
                    **config,
                },
            }
        },
    }


def create(service: Service, *files: str, **options: Any) -> str:
    return str(service.call("POST", "/batch/jobs", json=request(*files, **options))["id"])


def results(service: Service, job_id: str) -> dict[str, list[dict[str, str]]]:
    service.wait(job_id, "COMPLETED")
    return {name: list(csv.DictReader(io.StringIO(text.decode()))) for name, text in service.outputs(job_id).items()}


def test_each_window_has_one_prediction_in_row_order_under_its_first_row_s_time(service: Service) -> None:
    jobs = {size: create(service, "day.csv", reader={"window_size": size}) for size in (16, 64, 128)}
    for size, windows in {16: 185, 64: 137, 128: 73}.items():
        ((name, rows),) = results(service, jobs[size]).items()  # no more than batch_size * flush: exactly one file
        assert name.startswith("inp_")
        assert "_output_day_part_" in name
        assert name.endswith(".csv")
        assert [row["DATE_TIME"] for row in rows] == [str(t) for t in range(windows)]  # no decimal point
        assert {row["Prediction"] for row in rows} <= {"calm", "wild"}
    rows = next(iter(results(service, jobs[16]).values()))
    assert {row["Prediction"] for row in rows[:80]} == {"calm"}
    assert {row["Prediction"] for row in rows[105:]} == {"wild"}


def test_steps_and_parts_are_counted_as_the_contract_says(service: Service) -> None:
    job_id = create(service, "day.csv", batch_size=8, flush_every_n_iteration=5, reader={"step_size": 3})
    parts = results(service, job_id)
    times = [row["DATE_TIME"] for name in sorted(parts, key=part_number) for row in parts[name]]
    windows = (ROWS - 16) // 3 + 1
    assert [len(parts[name]) for name in sorted(parts, key=part_number)] == [40, windows - 40]
    assert times == [str(3 * n) for n in range(windows)]
    counts = service.get(f"/batch/jobs/{job_id}/inputs/progress/counts")
    assert (counts["completed"], counts["failed"], counts["pending"]) == (1, 0, 0)  # the examples are not counted


def part_number(name: str) -> int:
    return int(name.rpartition("_")[2].removesuffix(".csv"))


def test_a_text_time_passes_through_and_what_only_the_hosted_service_needs_is_accepted(service: Service) -> None:
    job_id = create(
        service, "day.csv", "wild.csv",
        model_type="omega_1_5_base",
        omega_1_5={"base_model_path": "models/omega_1_5_base"},
        data_source={"source_type": "s3"},
        reader={"timestamp_column": "told"},
    )  # fmt: skip
    found = results(service, job_id)
    assert sorted(len(rows) for rows in found.values()) == [135, 185]
    times = {rows[0]["told"] for rows in found.values()}
    assert times == {"28/12/2015 00:00:14 AM", "28/12/2015 01:40:14 AM"}
    assert service.job(job_id)["parameters"]["worker"]["config"]["data_source"] == {"source_type": "s3"}
    shots = service.get(f"/batch/jobs/{job_id}/inputs", port_name="worker.n_shots")["inputs"]
    assert {one["status"] for one in shots} == {"reference"}


def test_a_bad_cell_and_a_missing_column_are_named_with_file_and_row(service: Service) -> None:
    spoilt = sensor(0, 40, 1.0).replace(b"\n30,", b"\n30,oops", 1)
    service.upload("spoilt.csv", spoilt, "text/csv")
    service.upload("other.csv", b"DATE_TIME,a\n1,2\n3,4\n", "text/csv")
    job_id = create(service, "spoilt.csv", "other.csv", "day.csv")
    found = results(service, job_id)
    (spoilt_rows,) = (rows for name, rows in found.items() if "spoilt" in name)
    assert [n for n, row in enumerate(spoilt_rows) if not row["Prediction"]] == list(range(15, 25))  # they touch row 31
    said = [e["message"] for e in service.events(job_id) if e["level"] == "ERROR"]
    assert any("spoilt.csv" in m and "31" in m and "'a'" in m for m in said), said
    assert any("other.csv" in m and "'b'" in m for m in said), said
    progress = service.job(job_id)["input_progress"]
    assert (progress["completed"], progress["failed"]) == (1, 2)


def test_too_few_examples_fail_the_job_with_what_to_do(service: Service) -> None:
    job_id = create(service, "day.csv", classifier_config={"n_neighbors": 500})
    job = service.wait(job_id, "FAILED")
    assert "n_neighbors is 500" in job["error"]["message"]


def test_examples_of_one_class_are_refused_at_once(service: Service) -> None:
    answer = service.http.post("/v0.5/batch/jobs", json=request("day.csv", n_shots={"calm.csv": "calm"}))
    assert answer.status_code == 422
    assert "two or more" in answer.json()["errors"][0]["message"]


def test_a_time_column_that_is_called_as_the_results_column_is_refused(service: Service) -> None:
    job = service.wait(create(service, "day.csv", reader={"timestamp_column": "Prediction"}), "FAILED")
    assert "Prediction" in job["error"]["message"]


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"classifier_config": {"n_neighbors": 2}}, "classifier_config.n_neighbors"),
        ({"reader": {"step_size": 0}}, "reader_config.step_size"),
        ({"operations": {"span_seconds": 1}}, "operations"),
        ({"model_type": "omega_9"}, "model_type"),
    ],
)
def test_a_configuration_outside_its_schema_is_422_with_its_path(
    service: Service, config: dict[str, Any], path: str
) -> None:
    answer = service.http.post("/v0.5/batch/jobs", json=request("day.csv", **config))
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert f"config.{path}" in error["message"]
