"""`jos up` as a person uses it: the README's own lines, a second start, a stop amid work, children that die."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from pathlib import Path

from jobs_lab import REPOSITORY, alive, kill, until
from up_lab import Up

from jos.core.model import Status
from jos.store import embedded
from jos.store.keys import ApiKeys
from jos.store.redis import Store


def readme_block() -> str:
    """The shell lines of the README's section on the service."""
    section = (REPOSITORY / "README.md").read_text().partition("## The service")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    [block] = [b for b in blocks if "curl" in b]
    return block


def test_the_readme_s_curl_lines_work_as_they_stand(up: Up, tmp_path: Path) -> None:
    environment = {**up.environment, "JOS_URL": up.url, "JOS_API_KEY": up.key}
    done = subprocess.run(
        ["sh", "-eu", "-c", readme_block()],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr + up.said()
    assert '"event_type":"job.completed"' in done.stdout
    [result] = tmp_path.glob("inp_*.csv")
    lines = result.read_text().splitlines()
    assert lines[0].startswith("time,Prediction")
    states = [line.split(",")[1] for line in lines[1:]]
    assert len(states) == 400 - 16 + 1
    assert (set(states[:180]), set(states[-180:])) == ({"idle"}, {"busy"})


def test_a_second_up_on_the_same_home_says_where_the_first_is(up: Up) -> None:
    [error] = up.jos("up", code=2)["errors"]
    assert error["code"] == "conflict"
    assert up.url in error["message"]


def test_a_taken_port_is_told(up: Up, own_up: Up) -> None:
    [error] = own_up.jos("up", "--port", up.port, code=2)["errors"]
    assert f"port {up.port}" in error["message"]


def test_a_first_start_that_fails_makes_no_key_that_nobody_saw(own_up: Up) -> None:
    own_up.home.mkdir()
    (own_up.home / "ray").write_text("in the way of Ray's folder")
    own_up.jos("up", "--port", own_up.port, code=1)

    async def keys() -> int:
        async with await Store.open(None, own_up.home / "redis") as store:
            return len(await ApiKeys(store.connection).list(None))

    assert asyncio.run(keys()) == 0
    embedded.stop(own_up.home / "redis")


def test_a_stop_leaves_jobs_to_the_next_start_and_nothing_behind(own_up: Up, tmp_path: Path) -> None:
    own_up.start()
    first_key = own_up.key
    assert first_key.startswith("sk_")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"a {n}"}) + "\n" for n in range(120)))
    with own_up.client() as client:
        config = {"worker": {"config": {"seconds": 0.1, "span_records": 4}}}
        job = client.jobs.create("shout", {"data": tmp_path / "a.jsonl"}, config, parallelism=1)
        until(lambda: any(p.metrics.get("items_processed", 0) >= 8 for p in _progress(job)), 120)
    assert own_up.stop(signal.SIGTERM) == 0
    assert not [p for p in _processes() if str(own_up.home) in p]
    own_up.start()
    assert own_up.told["api_key"] is None
    with own_up.client() as client:
        job = client.job(job.id).wait(120)
        assert job.record.status is Status.COMPLETED
        [path] = job.download(tmp_path / "out")
        assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == [f"A {n}" for n in range(120)]
        admitted = [e for e in job.events() if e.event_type == "job.admitted"]
        assert len(admitted) == 2
    assert own_up.stop() == 0


def _progress(job: object) -> list[object]:
    from jos.client.handles import Job
    from jos.wire import ProgressList

    assert isinstance(job, Job)
    path = f"/batch/jobs/{job.id}/progress"
    return list(job._http.get(path, ProgressList, limit=1000).entries)


def _processes() -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (folder / "cmdline").read_text(), (folder / "environ").read_text()
        except OSError:
            continue
        found.append(command if int(folder.name) == os.getpid() else command + environment)
    return found


def test_a_child_that_dies_is_started_again(up: Up) -> None:
    for name in ("api", "controller"):
        old = up.child(name)
        kill(old)
        until(lambda old=old: not alive(old))
        until(lambda name=name, old=old: up.child(name) not in (0, old), 60)
    with up.client() as client:
        assert client.jobs.list()[0] >= 0  # it asks until the API is there
    assert "is started again" in up.log.read_text()


def test_children_do_not_outlive_a_killed_up(own_up: Up) -> None:
    own_up.start()
    children = [own_up.child(name) for name in ("api", "controller")]
    own_up.kill()
    until(lambda: not any(alive(c) for c in children), 60)
    own_up.start()  # takes up what is left of Ray
    assert own_up.stop() == 0
