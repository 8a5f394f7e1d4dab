"""schemathesis against a real `jos api`: every operation of the OpenAPI description, with objects that exist.

    python tests/fuzz/run.py --seconds 600

Nothing may answer 5xx, or with a status, a type, a header or a body that the description does not have. Prints how
often each status was given; the exit code is that of the run. No controller: jobs that are created wait.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import orjson

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "lab"))

from services_lab import _die_with_parent, free_ports  # noqa: E402

from jos.core.commands import Admit, Cancel, Completed, Drained, Started  # noqa: E402
from jos.core.ids import new_id  # noqa: E402
from jos.core.model import Checkpoint, EventDraft, InputState, InputStatus, Output, ProgressDraft  # noqa: E402
from jos.settings import Settings  # noqa: E402
from jos.store import embedded  # noqa: E402
from jos.store.keys import ApiKeys  # noqa: E402
from jos.store.records import Mirror  # noqa: E402
from jos.store.redis import Store  # noqa: E402

BIN = Path(sys.executable).parent
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "unsupported_method", "allow_header_conformance", "ignored_auth"),
)
_COUNT = re.compile(r'jos_api_request_seconds_count\{method="(\w+)",route="([^"]*)",status="(\d+)"\} (\d+)')


@dataclass
class Running:
    """A `jos api` of its own, in a folder of its own."""

    folder: Path
    settings: Settings
    url: str
    key: str

    @property
    def http(self) -> httpx2.Client:
        return httpx2.Client(base_url=f"{self.url}/v0.5", headers={"Authorization": f"Bearer {self.key}"}, timeout=30)

    def answers(self) -> Counter[str]:
        """How often each status was given, as the service itself counts."""
        found: Counter[str] = Counter()
        for _, _, status, count in _COUNT.findall(httpx2.get(f"{self.url}/metrics").text):
            found[status] += int(count)
        return found


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Running]:
    (port,) = free_ports(1)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JOS_")} | {
        "JOS_HOME": str(folder / "home"),
        "JOS_API_PORT": str(port),
        "JOS_PIPELINES": str(HERE.parent / "lab" / "pipelines"),
        "JOS_ORG": "org_fuzz",
        "JOS_RATE_LIMIT": "0",
    }
    settings = Settings(home=folder / "home", org="org_fuzz")
    options: dict[str, Any] = {"preexec_fn": _die_with_parent} if sys.platform == "linux" else {}
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen([str(BIN / "jos"), "api"], env=environment, stdout=log, stderr=log, **options)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process, folder)
        yield Running(folder, settings, url, asyncio.run(_first_key(settings)))
    finally:
        process.terminate()
        process.wait(60)
        embedded.stop(settings.redis_dir)


def _wait(url: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.get(f"{url}/readyz").status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError((folder / "api.log").read_text()[-4000:])


async def _first_key(settings: Settings) -> str:
    async with await Store.open(settings.redis_url, settings.redis_dir) as store:
        return (await ApiKeys(store.connection).create(settings.org, "admin", "the run's own", datetime.now(UTC)))[1]


# --- objects that exist -----------------------------------------------------------------------------------


def seed(api: Running, count: int = 12) -> dict[str, list[str]]:
    """By the name of the path parameter."""
    ids: dict[str, list[str]] = {}
    with api.http as http:

        def call(method: str, path: str, **options: Any) -> Any:
            answer = http.request(method, path, **options)
            assert answer.status_code < 300, answer.text
            return answer.json()

        files = [(f"file-{n}.jsonl", b'{"text": "a"}\n' * (n + 1), "application/x-ndjson") for n in range(count)]
        ids["file_id"] = [call("POST", "/files", files={"file": one})["file_id"] for one in files]
        jobs = []
        for n in range(3 * count):
            body = {"name": f"job {n}", "pipeline_type": "batch", "pipeline_key": "shout"}
            body |= {"inputs": {"worker.data": [{"file_id": ids["file_id"][n % count]}]}}  # type: ignore[dict-item]
            jobs.append(call("POST", "/batch/jobs", json=body)["id"])
        ids["job_id"] = jobs
        ids["finished_job_id"] = jobs[:count]
        ids["fine_tuning_job_id"] = _tunings(f"{api.url}/v0.6", http, ids["file_id"], count)
        inputs = {job: call("GET", f"/batch/jobs/{job}/inputs")["inputs"][0]["id"] for job in jobs[: 2 * count]}
        asyncio.run(_move_on(api.settings, inputs, count))
        ids["pipeline_id"] = [p["id"] for p in call("GET", "/batch/registry/pipelines")["pipelines"]]
        ids["upload_id"] = [
            call("POST", "/files/uploads/initiate", json={"filename": f"part-{n}.csv", "num_bytes": 9})["upload_id"]
            for n in range(count)
        ]
        ids["key_id"] = [call("POST", "/keys", json={"name": f"key {n}"})["id"] for n in range(2 * count)]
    return ids


def _tunings(base: str, http: httpx2.Client, files: list[str], count: int) -> list[str]:
    method = {"type": "head", "head": {"reader": {"data_columns": ["a"], "window_size": 8}}}
    shots = [{"file_id": name, "label": str(n % 2)} for n, name in enumerate(files)]
    body = {"name": "a tuning", "method": method, "training_files": shots}
    made = []
    for _ in range(count):
        answer = http.post(f"{base}/fine_tuning/jobs", json=body)
        assert answer.status_code == 201, answer.text
        made.append(answer.json()["id"])
    return made


async def _move_on(settings: Settings, inputs: dict[str, str], count: int) -> None:
    """As a controller and a driver would: the first `count` jobs complete, some of the others run, one is cancelled."""
    async with await Store.open(settings.redis_url, settings.redis_dir) as store:
        for n, (job_id, input_id) in enumerate(inputs.items()):
            now = datetime.now(UTC)
            await store.transact(job_id, Admit(job_id), now)
            await store.transact(job_id, Started(job_id), now)
            done = InputState(
                input_id=input_id, status=InputStatus.COMPLETED, tasks=1, done=1, completed_at=now, step=1
            )
            key = "outputs/result.jsonl"
            common: dict[str, Any] = {"num_bytes": 3, "sha256": "0" * 64, "created_at": now}
            output = Output(
                id=new_id("out"),
                port="worker.result",
                input_id=input_id,
                filename="r.jsonl",
                key=key,
                tasks=1,
                **common,
            )
            checkpoint = Checkpoint(
                id=new_id("ckp"), name="step_1", step=1, metrics={"macro_f1": 0.5}, key=key, **common
            )
            await store.mirror(
                job_id,
                Mirror(
                    token=job_id,
                    seq=1,
                    at=now,
                    events=[EventDraft(event_type="input_started", message="begun", input_id=input_id, created_at=now)],
                    progress=[
                        ProgressDraft(
                            kind="inference",
                            metrics={"items_processed": 1, "items_total": 1, "success": 1, "failed": 0},
                            input_id=input_id,
                            created_at=now,
                        )
                    ],
                    inputs=[done],
                    outputs=[output],
                    checkpoints=[checkpoint],
                ),
            )
            if n < count:
                await store.transact(job_id, Completed(job_id), now)
            elif n % 3 == 0:
                await store.transact(job_id, Cancel(), now)
                await store.transact(job_id, Drained(job_id), now)


# --- the run ----------------------------------------------------------------------------------------------


def fuzz(folder: Path, seconds: int, workers: int = 1, seed_: int | None = None) -> tuple[int, Counter[str], str]:
    """(exit code, how often each status was given, what schemathesis said)."""
    with serving(folder) as api:
        ids = folder / "ids.json"
        ids.write_bytes(orjson.dumps(seed(api)))
        before = api.answers()
        command = [str(BIN / "st"), "run", f"{api.url}/openapi.json", "--max-time", str(seconds)]
        command += ["--checks", ",".join(CHECKS), "--workers", str(workers), "--request-timeout", "20"]
        command += ["-H", f"Authorization: Bearer {api.key}", "--continue-on-failure", "--no-shrink"]
        command += ["--suppress-health-check", "all", "--warnings", "off", "--generation-database", "none"]
        command += ["--seed", str(seed_)] if seed_ is not None else []
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE), "NO_COLOR": "1"}
        environment["JOS_FUZZ_IDS"] = str(ids)
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=seconds + 300, check=False
        )
        answers = api.answers() - before
        said = done.stdout + done.stderr
        if any(status >= "500" for status in answers):
            said += "\nthe service's log:\n" + (folder / "api.log").read_text(errors="replace")[-8000:]
        return done.returncode, answers, said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jos-fuzz-") as folder:
        code, answers, said = fuzz(Path(folder), given.seconds, given.workers, given.seed)
    print(said)
    print(f"{sum(answers.values()):,} requests:", ", ".join(f"{n:,} x {s}" for s, n in sorted(answers.items())))
    return code or int(any(status >= "500" for status in answers))


if __name__ == "__main__":
    sys.exit(main())
