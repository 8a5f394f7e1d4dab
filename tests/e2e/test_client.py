"""The client and the command line against a whole service."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest
from jobs_lab import until
from up_lab import Up

from jos.client import Client, Job, JobFailed
from jos.client.transfer import checksum_of
from jos.core.errors import BadRequest, ConfigInvalid, Conflict, JosError, NotFound, Unauthorized
from jos.core.model import Status


def texts(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"text": f"a {n}"}) + "\n" for n in range(count)))
    return path


def slow(client: Client, path: Path, **options: Any) -> Job:
    config = {"worker": {"config": {"seconds": 0.1, "span_records": 2}}}
    return client.jobs.create("shout", {"data": path}, config, parallelism=1, **options)


def test_a_job_from_local_files_to_a_data_frame(up: Up, tmp_path: Path) -> None:
    files = [texts(tmp_path / name, 30) for name in ("one.jsonl", "two.jsonl")]
    with up.client() as client:
        job = client.jobs.create("shout", {"data": files}, parallelism=2, name="two files", priority=3)
        assert (job.record.name, job.record.priority) == ("two files", 3)
        followed = list(job.follow())
        assert [e.id for e in followed if hasattr(e, "event_type")] == [e.id for e in job.events()]
        frame = job.wait().to_pandas()
        assert list(frame["input_file"].unique()) == ["one.jsonl", "two.jsonl"]
        assert list(frame["text"]) == [f"A {n}" for n in range(30)] * 2
        assert job.progress() == {"pending": 0, "processing": 0, "completed": 2, "failed": 0}
        assert [i.file_id for i in job.inputs()] == ["one.jsonl", "two.jsonl"]
        paths = job.download(tmp_path / "out")
        assert sorted(p.name for p in paths) == sorted(o.data.filename for o in job.outputs())
        again = client.jobs.create("shout", {"data": ["one.jsonl"]})  # by the name of the uploaded file
        assert again.wait(60).record.status is Status.COMPLETED
        job.delete()
        with pytest.raises(NotFound):
            client.job(job.id)


def test_a_cancelled_job_goes_on_after_a_retry(up: Up, tmp_path: Path) -> None:
    with up.client() as client:
        job = slow(client, texts(tmp_path / "cancelled.jsonl", 40))
        for event in job.events(follow=True):
            if event.event_type == "input_started":
                job.cancel()
        assert job.status is Status.CANCELLED
        with pytest.raises(JobFailed, match="is CANCELLED"):
            job.wait()
        with pytest.raises(Conflict):
            job.cancel()
        job.retry()
        assert job.record.retry_count == 1
        job.wait(90)
        [path] = job.download(tmp_path)
        assert path.read_text().count("\n") == 40


def test_wait_tells_the_truth_about_time(up: Up, tmp_path: Path) -> None:
    with up.client() as client:
        job = slow(client, texts(tmp_path / "long.jsonl", 400))
        with pytest.raises(TimeoutError, match="is still"):
            job.wait(0.5)
        job.cancel()


def test_everything_wrong_with_a_request_is_told_at_once(up: Up, tmp_path: Path) -> None:
    with up.client() as client:
        config = {"worker": {"parallelism": 0, "config": {"loud": True}}}
        with pytest.raises(ConfigInvalid) as caught:
            client.jobs.create("shout", {"data": texts(tmp_path / "wrong.jsonl", 3)}, config)
        paths = {v.path for v in caught.value.violations}
        assert paths >= {"$.parameters.worker.parallelism", "$.parameters.worker.config.loud"}
        with pytest.raises(BadRequest, match=r"nowhere\.jsonl"):
            client.jobs.create("shout", {"data": "nowhere.jsonl"})
        with pytest.raises(NotFound):
            client.jobs.create("no-such-pipeline", {"data": tmp_path / "wrong.jsonl"})
    with Client(up.url, "sk_wrong") as stranger, pytest.raises(Unauthorized):
        stranger.queue()


def test_an_upload_cut_off_by_kill_9_sends_only_what_is_missing(up: Up, tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    with path.open("wb") as file:
        file.truncate(80 << 20)  # five parts; zeros are as good as anything
        file.write(b"the end")
    code = """if True:
        import os, signal, sys
        from jos.client import Client, transfer
        keep = transfer.Sending._checkpoint
        def checkpoint(self, upload, tokens, kept):
            done = keep(self, upload, tokens, kept)
            if done >= 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return done
        transfer.Sending._checkpoint = checkpoint
        Client(sys.argv[1], sys.argv[2]).files.upload(sys.argv[3], workers=1)
    """
    done = subprocess.run(["python", "-c", code, up.url, up.key, str(path)], env=up.environment, check=False)
    assert done.returncode == -9
    sent: list[int] = []
    with up.client() as client:
        put = client._http.plain.put

        def counted(*arguments: Any, **options: Any) -> httpx2.Response:
            sent.append(int(options["headers"]["Content-Length"]))
            return put(*arguments, **options)

        client._http.plain.put = counted  # type: ignore[method-assign]
        [record] = client.files.upload(path)
        assert (record.num_bytes, record.file_status) == (path.stat().st_size, "Registered")
        assert 0 < sum(sent) < path.stat().st_size - (30 << 20)
        back = client.files.download(path.name, tmp_path / "back.csv")
        assert checksum_of(back) == checksum_of(path)
        client.files.delete(path.name)


def test_files_are_listed_reused_and_replaced(up: Up, tmp_path: Path) -> None:
    path = texts(tmp_path / "mine.jsonl", 3)
    with up.client() as client:
        [first] = client.files.upload(path)
        assert client.files.upload(path) == [first]
        texts(path, 4)
        with pytest.raises(Conflict, match="with other content"):
            client.files.upload(path)
        [second] = client.files.upload(path, replace=True)
        assert second.file_uid != first.file_uid
        assert "mine.jsonl" in {r.file_id for r in client.files.list()}
        client.files.delete("mine.jsonl")
        with pytest.raises(NotFound):
            client.files.get("mine.jsonl")


# --- the command line ---------------------------------------------------------------------------------


def test_the_command_line_submits_shows_and_fetches(up: Up, tmp_path: Path) -> None:
    texts(tmp_path / "cli.jsonl", 20)
    request = {"name": "by file", "pipeline_key": "shout", "inputs": {"worker.data": [{"file_id": "cli.jsonl"}]}}
    (tmp_path / "job.yaml").write_text(json.dumps(request))
    done = up.jos("submit", tmp_path / "job.yaml", "--download", tmp_path / "out")  # from another folder
    assert (done["status"], done["name"], len(done["outputs"])) == ("COMPLETED", "by file", 1)
    assert Path(done["outputs"][0]).read_text().count("\n") == 20
    job_id = done["id"]
    assert up.jos("show", "last")["inputs"][0]["done"] == 20
    assert up.jos("jobs", "--q", job_id)["jobs"][0]["id"] == job_id
    assert [e["event_type"] for e in up.jos("events", job_id)][-1] == "job.completed"
    assert up.jos("outputs", job_id)["outputs"][0]["location"].startswith(up.url)
    assert up.jos("inputs", job_id)["total"] == 1
    assert {q["pipeline_type"] for q in up.jos("queue")["queues"]} >= {"batch"}
    assert "shout" in {p["pipeline_key"] for p in up.jos("pipelines")["pipelines"]}
    assert "worker.data" in up.jos("schema", "shout")["inputs"]
    assert up.jos("cancel", job_id, code=2)["errors"][0]["code"] == "conflict"
    assert up.jos("retry", job_id, code=2)["errors"][0]["code"] == "conflict"
    assert up.jos("verify", job_id)["ok"]
    assert up.jos("recover")["problems"] == []
    assert up.jos("delete", job_id) == {"id": job_id, "deleted": True}
    assert up.jos("show", job_id, code=2)["errors"][0]["code"] == "not_found"


def test_the_command_line_handles_files_and_keys(up: Up, tmp_path: Path) -> None:
    texts(tmp_path / "f.jsonl", 2)
    [record] = up.jos("upload", "f.jsonl", cwd=tmp_path)["files"]
    assert record["file_id"] == "f.jsonl"
    up.jos("files", "f.jsonl", "--download", tmp_path / "got")
    assert (tmp_path / "got" / "f.jsonl").read_bytes() == (tmp_path / "f.jsonl").read_bytes()
    assert up.jos("files", "f.jsonl", "--delete") == {"deleted": ["f.jsonl"]}
    key = up.jos("keys", "create", "--name", "a reader", "--role", "reader")
    with Client(up.url, key["key"]) as reader:
        reader.queue()
        with pytest.raises(JosError, match="role"):
            reader.files.upload(tmp_path / "f.jsonl")
        up.jos("keys", "revoke", key["id"])
        with pytest.raises(Unauthorized):
            reader.queue()
    assert key["id"] not in {k["id"] for k in up.jos("keys", "list")["keys"]}


def test_run_on_the_same_home_is_driven_by_the_service(up: Up, tmp_path: Path) -> None:
    texts(tmp_path / "here.jsonl", 10)
    done = up.jos("run", "--pipeline", "shout", "--input", "worker.data=here.jsonl", cwd=tmp_path)
    assert (done["status"], done["progress"]["items_processed"]) == ("COMPLETED", 10)


def test_a_login_is_remembered_and_a_wrong_key_is_not(up: Up, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JOS_")} | {"JOS_HOME": str(tmp_path)}

    def jos(*arguments: str) -> tuple[int, Any]:
        command = [up.environment["PATH"].partition(":")[0] + "/jos", *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return done.returncode, json.loads(done.stdout)

    assert jos("login", up.url, "--key", "sk_wrong")[1]["errors"][0]["code"] == "unauthorized"
    assert jos("queue")[1]["errors"][0]["code"] == "not_found"
    assert jos("login", up.url, "--key", up.key)[0] == 0
    code, found = jos("jobs")
    assert (code, "jobs" in found) == (0, True)


def test_a_server_that_goes_away_for_a_moment_is_waited_for(up: Up, tmp_path: Path) -> None:
    from jobs_lab import kill

    with up.client() as client:
        job = slow(client, texts(tmp_path / "away.jsonl", 60))
        seen: list[int] = []
        for event in job.events(follow=True):
            seen.append(event.id)
            if event.event_type == "input_started":
                kill(up.child("api"))
        assert job.status is Status.COMPLETED
        assert seen == sorted(set(seen)) == list(range(1, len(seen) + 1))
    until(lambda: up.child("api"))
