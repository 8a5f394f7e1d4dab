"""The fake KubeRay, Kueue and kubelet against recordings of the real ones: same objects, same states, same order.

Each scenario does what was done to the real cluster, with a clock of its own. All states of every object are compared,
without what differs between any two runs (times, uids, addresses, the five letters of generated names).
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from kube.objects import Objects
from kube.parts import Made
from kube.samples import queue
from kube.standins import Scripted
from kube.world import Clock, World

RECORDINGS = Path(__file__).parents[1] / "data" / "kube-transcripts"
COMPARED = ("rayjobs", "rayclusters", "workloads", "pods", "services", "jobs")
LETTERS = r"-[bcdfghjklmnpqrstvwxz2456789]{5}\b"
# differs between any two runs, or is the server's or a kubelet's that was not recorded
NOISE = {
    "uid", "resourceVersion", "creationTimestamp", "lastTransitionTime", "lastUpdateTime", "startTime", "endTime",
    "deletionTimestamp", "startedAt", "finishedAt", "completionTime", "podIP", "podIPs", "hostIP", "serviceIP",
    "imageID", "ray.io/upgrade-strategy-recreate-hash", "ready_at", "qosClass", "kueue.x-k8s.io/job-uid",
}  # fmt: skip
Step = tuple[str, str, Any]  # resource, name, state


@dataclass
class Recording:
    name: str
    changes: list[Made] = field(default_factory=list)

    def __post_init__(self) -> None:
        (path,) = RECORDINGS.glob(f"{self.name}-*.jsonl.gz")
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        rows = [row for row in rows if row["object"]["metadata"]["name"].startswith((self.name, f"rayjob-{self.name}"))]
        self.changes = sorted(rows, key=lambda row: int(row["object"]["metadata"]["resourceVersion"]))

    def first(self, resource: str, name: str) -> Made:
        """The object as its user wrote it."""
        rows = [
            r["object"] for r in self.changes if r["resource"] == resource and r["object"]["metadata"]["name"] == name
        ]
        made: Made = json.loads(json.dumps(rows[0]))
        labels = made["metadata"].get("labels")
        made["metadata"] = {"name": name, "namespace": "jos"} | ({"labels": labels} if labels else {})
        made["spec"].pop("suspend", None)
        cluster = made["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            group.pop("scaleStrategy", None)
            group["template"].pop("metadata", None)
        return made

    def steps(self) -> list[tuple[str, str, Made]]:
        return [(row["resource"], row["type"], row["object"]) for row in self.changes]


def states(steps: list[tuple[str, str, Made]]) -> dict[tuple[str, str, str], list[Any]]:
    """(resource, name, which part) -> its states, each once in a row."""
    found: dict[tuple[str, str, str], list[Any]] = {}
    plain = Plain()
    for resource, kind, thing in steps:
        if resource not in COMPARED:
            continue
        name = plain.text(thing["metadata"]["name"])
        state = "DELETED" if kind == "DELETED" else plain.object(resource, thing)
        for part, value in _parts(resource, state):
            mine = found.setdefault((resource, name, part), [])
            if not mine or mine[-1] != value:
                mine.append(value)
    return found


def _parts(resource: str, state: Any) -> list[tuple[str, Any]]:
    """A Workload's conditions come from two controllers that do not wait for each other: each is looked at by itself,
    and whether pods are ready without the reason, which flickers in the recording."""
    if (
        resource == "pods"
        and state != "DELETED"
        and "nodeName" in state["spec"]
        and "conditions" not in state["status"]
    ):
        return []  # bound in two writes here, in one in a real cluster
    if resource != "workloads" or state == "DELETED":
        return [("", state)]
    conditions = state.get("status", {}).pop("conditions", {})
    conditions.get("PodsReady", {}).pop("reason", None)
    conditions.get("PodsReady", {}).pop("message", None)
    if not state.get("status"):
        state.pop("status", None)
    return [("", state), *conditions.items()]


class Plain:
    """Takes out what differs between any two runs. The letters of a generated name become its number."""

    def __init__(self) -> None:
        self.numbers: dict[str, dict[str, str]] = {}  # what stands before the letters -> letters -> number

    def text(self, text: str) -> str:
        text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UID", text)
        text = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d", "TIME", text)
        text = re.sub(r"^(rayjob-.*)-[0-9a-f]{5}$", r"\1-HASH", text)
        while match := re.search(LETTERS, text):
            known = self.numbers.setdefault(text[: match.start()], {})
            number = known.setdefault(match[0], f"-<{len(known) + 1}>")
            text = text[: match.start()] + number + text[match.end() :]
        return text

    def object(self, resource: str, thing: Made) -> Any:
        thing = json.loads(json.dumps(thing))
        meta = thing["metadata"]
        if "deletionTimestamp" in meta:
            meta["deletionGracePeriodSeconds"] = "leaving"
        if resource == "pods":
            thing["spec"] = {
                k: v for k, v in thing["spec"].items() if k in ("nodeName", "nodeSelector", "restartPolicy")
            }
            for condition in thing["status"].get("conditions", []):
                condition.pop("lastProbeTime", None)
            if thing["status"]["phase"] == "Succeeded":  # the recorded pod's kubelet was a stand-in that told little
                thing["status"] = {"phase": "Succeeded"}
        if resource == "services":
            thing["spec"] = {k: v for k, v in thing["spec"].items() if k in ("ports", "selector", "clusterIP", "type")}
        if resource == "jobs":
            thing = {"metadata": meta, "owner": meta["ownerReferences"]}
        return self.value(thing)

    def value(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.value(value[key]) if key not in NOISE else "…" for key in sorted(value)}
        if isinstance(value, list):
            if value and isinstance(value[0], dict) and {"type", "status"} <= value[0].keys():
                return {one["type"]: self.value(one) for one in value}
            return [self.value(one) for one in value]
        return self.text(value) if isinstance(value, str) else value


@dataclass
class Replay:
    """A recording, and the fake cluster that repeats it."""

    recording: Recording
    world: World
    standin: Scripted
    seen: list[tuple[str, str, Made]]

    @property
    def objects(self) -> Objects:
        return self.world.objects

    def submit(self, name: str) -> None:
        self.objects.create("rayjobs", self.recording.first("rayjobs", name))

    def job(self, name: str) -> Made:
        return self.objects.get("rayjobs", "jos", name)

    def until(self, name: str, seconds: float = 60.0, **status: Any) -> Made:
        """Lets time pass until the RayJob has this status."""

        def reached() -> bool:
            now = self.job(name).get("status", {})
            return all(now.get(field, "") == value for field, value in status.items())

        self.world.advance(seconds, reached)
        assert reached(), f"{name} is {self.job(name).get('status')}, not {status}"
        return self.job(name)

    def say(self, name: str, status: str, message: str = "ok") -> None:
        self.standin.say(self.job(name)["status"]["jobId"], status, message)

    def delete(self, name: str) -> None:
        self.world.advance(5)
        self.objects.delete("rayjobs", "jos", name)
        self.world.advance(5)


ReplayOf = Callable[..., Replay]


@pytest.fixture
def replay() -> ReplayOf:
    def begin(name: str, worker_is_late: float = 0.02) -> Replay:
        clock = Clock()
        objects = Objects(clock, namespaces=("jos",))
        standin = Scripted(clock, remembers=True)

        def start_seconds(pod: Made) -> float:
            return 1.0 + worker_is_late * (pod["metadata"]["labels"].get("ray.io/node-type") == "worker")

        world = World(objects, standin, start_seconds=start_seconds)
        world.kubelet.add_node("fake-0", {"cpu": 64, "memory": "256Gi"})
        seen: list[tuple[str, str, Made]] = []
        objects.subscribe(lambda change: seen.append((change.resource, change.type, change.obj)))
        return Replay(Recording(name), world, standin, seen)

    return begin


def same(replay: Replay) -> None:
    """Fails at the first state of an object that is not the recorded one."""
    wanted, found = states(replay.recording.steps()), states(replay.seen)
    assert sorted(found) == sorted(wanted)
    for key, expected in wanted.items():
        for number, (one, other) in enumerate(zip_longest(found[key], expected)):
            assert different(one, other) == [], f"{key}, state {number}: (field, here, recorded)"
    assert events(replay.seen) == events(replay.recording.steps())


def events(steps: list[tuple[str, str, Made]]) -> set[tuple[str, str, str, str]]:
    """What was told of whom; how often and when differs between any two runs."""
    told = [thing for resource, _, thing in steps if resource == "events"]
    return {(e["involvedObject"]["kind"], e["reason"], e["type"], e["reportingComponent"]) for e in told}


def different(one: Any, other: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """The fields in which they differ."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [(path, one, other)]
    keys = dict.fromkeys([*one, *other])
    return [d for key in keys for d in different(one.get(key), other.get(key), f"{path}.{key}")]


def test_a_job_over_http_starts_runs_and_completes(replay: ReplayOf) -> None:
    run = replay("s1")
    run.submit("s1")
    run.until("s1", jobStatus="RUNNING")
    run.say("s1", "SUCCEEDED")
    run.until("s1", jobDeploymentStatus="Complete")
    run.delete("s1")
    same(run)


def test_a_suspended_job_loses_its_cluster_and_its_history_and_starts_anew(replay: ReplayOf) -> None:
    run = replay("s2")
    run.submit("s2")
    began = run.until("s2", jobStatus="RUNNING")["status"]["startTime"]
    run.objects.patch("rayjobs", "jos", "s2", {"spec": {"suspend": True}})
    run.until("s2", jobDeploymentStatus="Suspended")
    run.world.advance(5)
    run.objects.patch("rayjobs", "jos", "s2", {"spec": {"suspend": False}})
    assert run.until("s2", jobStatus="RUNNING")["status"]["startTime"] > began
    run.say("s2", "SUCCEEDED")
    run.until("s2", jobDeploymentStatus="Complete")
    run.delete("s2")
    same(run)
    assert not run.standin.stopped  # pain 4: nothing tells the job


def test_under_kueue_a_higher_priority_takes_the_place_of_a_lower_one_which_returns(replay: ReplayOf) -> None:
    run = replay("s3")
    queue(run.objects, {"kubernetes.io/hostname": "fake-0"}, cpu=3, memory="3Gi")
    run.submit("s3-low")
    run.until("s3-low", jobStatus="RUNNING")
    run.world.advance(8)
    run.submit("s3-high")
    run.until("s3-high", jobStatus="RUNNING")
    run.say("s3-high", "SUCCEEDED")
    run.until("s3-high", jobDeploymentStatus="Complete")
    run.until("s3-low", jobStatus="RUNNING")
    run.say("s3-low", "SUCCEEDED")
    run.until("s3-low", jobDeploymentStatus="Complete")
    run.world.advance(5)
    for name in ("s3-high", "s3-low"):
        run.objects.delete("rayjobs", "jos", name)
    run.world.advance(5)
    same(run)


def test_a_job_that_fails_is_retried_as_often_as_its_backoff_limit_says(replay: ReplayOf) -> None:
    run = replay("s4")
    run.submit("s4")
    for attempt in (1, 2):
        run.until("s4", jobStatus="RUNNING")
        run.world.advance(5)
        run.say("s4", "FAILED", f"boom {attempt}")
        run.world.advance(0)
    run.until("s4", jobDeploymentStatus="Failed")
    run.delete("s4")
    same(run)


def test_a_job_past_its_deadline_has_failed_while_its_ray_job_is_said_to_run(replay: ReplayOf) -> None:
    run = replay("s5", worker_is_late=0)
    run.submit("s5")
    run.until("s5", jobStatus="RUNNING")
    run.until("s5", jobDeploymentStatus="Failed", jobStatus="RUNNING", reason="DeadlineExceeded")
    run.delete("s5")
    same(run)


def test_a_deleted_head_pod_is_made_anew_and_the_job_is_said_to_run_meanwhile(replay: ReplayOf) -> None:
    run = replay("s6")
    run.submit("s6")
    job = run.until("s6", jobStatus="RUNNING")
    run.objects.delete("pods", "jos", job["status"]["rayClusterStatus"]["head"]["podName"])
    run.world.advance(10)
    run.delete("s6")
    same(run)


def test_a_spec_that_cannot_be_is_told_so_and_makes_nothing(replay: ReplayOf) -> None:
    run = replay("s7")
    run.submit("s7")
    run.until("s7", jobDeploymentStatus="ValidationFailed")
    run.delete("s7")
    same(run)


def test_a_submitter_pod_submits_where_the_mode_says_so(replay: ReplayOf) -> None:
    run = replay("s8")
    run.submit("s8")
    job = run.until("s8", jobDeploymentStatus="Running")
    run.world.advance(8)
    run.standin.submit(job["status"]["jobId"], job["spec"]["entrypoint"], {}, {}, {})
    run.until("s8", jobStatus="RUNNING")
    run.say("s8", "SUCCEEDED")
    run.until("s8", jobStatus="SUCCEEDED", jobDeploymentStatus="Running")
    (submitter,) = run.objects.list("pods", "jos", {"job-name": "s8"})
    run.world.kubelet.finish("jos", submitter["metadata"]["name"])
    run.until("s8", jobDeploymentStatus="Complete")
    run.delete("s8")
    same(run)
