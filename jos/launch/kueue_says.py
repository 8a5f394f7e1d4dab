"""Why a job waits in Kueue, in Kueue's own words, with what to do about it where waiting alone does not help.

JOS may read Workloads and nothing else of Kueue's: what is wrong with a queue is known from what Kueue says of the
Workload, and a WorkloadPriorityClass that is missing only from this, that Kueue makes no Workload.
Pure. May import: jos.launch.base, jos.launch.pods, jos.launch.rayjob. Tests: tests/unit/test_kueue_says.py.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from string import Template

from jos.launch import pods
from jos.launch.base import Eviction
from jos.launch.pods import Object
from jos.launch.rayjob import KUEUE_PRIORITY

IGNORED = timedelta(seconds=15)  # so long nobody may look at a new RayJob before its owner is told what to check

_NOTHING: Object = {"status": {}}
_GO_ON = """-p '{"spec":{"stopPolicy":"None"}}'"""
_ACTIVE = """-p '{"spec":{"active":true}}'"""
_EXAMPLE = "k8s/components/kueue/queues.yaml has an example"
# what Kueue 0.18 and newer say -> what to do; $name is the name in it, $queue the LocalQueue, $space the namespace
_ADVICE = {
    r"LocalQueue (\S+) (?:doesn't exist|is terminating or missing)": "Create LocalQueue $name in namespace $space "
    f"({_EXAMPLE}), or name another one under kueue.local_queues in the profile; there are: "
    "kubectl get localqueues -n $space",
    r"LocalQueue (\S+) is (?:inactive|stopped)": "Somebody stopped it. It goes on with: "
    f"kubectl patch localqueue $name -n $space --type merge {_GO_ON}",
    r"The LocalQueue is stopped": "Somebody stopped it. It goes on with: "
    f"kubectl patch localqueue $queue -n $space --type merge {_GO_ON}",
    r"ClusterQueue (\S*) ?(?:doesn't exist|not found)": f"Create ClusterQueue $name ({_EXAMPLE}), or make LocalQueue "
    "$queue in namespace $space anew with another one",
    r"ClusterQueue (\S+) is inactive": "Its condition Active says why: kubectl describe clusterqueue $name. If "
    f"somebody stopped it: kubectl patch clusterqueue $name --type merge {_GO_ON}",
    r"The ClusterQueue is stopped": "Somebody stopped the ClusterQueue of LocalQueue $queue: kubectl get localqueue "
    f"$queue -n $space names it. It goes on with: kubectl patch clusterqueue NAME --type merge {_GO_ON}",
    r"namespace doesn't match ClusterQueue selector": "Give namespace $space the labels that spec.namespaceSelector of "
    "the ClusterQueue asks for (kubectl label namespace $space KEY=VALUE); kubectl get localqueue $queue -n $space "
    "names that queue",
    r"resource (\S+) unavailable in ClusterQueue": "The ClusterQueue of LocalQueue $queue has no quota of $name at "
    f"all: add it to its spec.resourceGroups ({_EXAMPLE})",
    r"> maximum capacity": "The job asks for more than its ClusterQueue can ever give: raise nominalQuota there "
    "(kubectl get localqueue $queue -n $space names it), or lower the job's parallelism",
    r"failed admission checks": "kubectl describe workload -n $space shows which, and why",
    r"[Tt]he workload is deactivated": "It goes on with: "
    f"kubectl patch workload $workload -n $space --type merge {_ACTIVE}",
}


def kueue_says(rayjob: Object, workload: Object | None, now: datetime) -> str:
    """Empty: Kueue has not looked at it yet, and need not have."""
    if workload is None:
        return _without_workload(rayjob, now)
    if (words := kueue_words(workload)) is not None:
        return words
    spec, space = workload.get("spec") or {}, _space(workload)
    if not spec.get("active", True):
        off = "Kueue does not look at it: its Workload was deactivated (spec.active is false). It goes on with"
        return f"""{off}: kubectl patch workload {pods.name(workload)} -n {space} --type merge {_ACTIVE}"""
    queue = spec.get("queueName") or "?"
    check = f"LocalQueue {queue} exists (kubectl get localqueues -n {space}), and that its ClusterQueue is active"
    return overlooked(rayjob, now, "Kueue", check)


def kueue_words(workload: Object | None) -> str | None:
    """What Kueue says in its Workload; None: nothing."""
    if workload is None:
        return None
    told = [pods.condition(workload, kind) for kind in ("Evicted", "QuotaReserved")]
    said = [
        str(found["message"])
        for found, wanted in zip(told, ("True", "False"), strict=True)
        if found.get("status") == wanted and found.get("message")
    ]
    if not said:
        return None
    advised = [(message, advice) for message in reversed(said) if (advice := _advice(message, workload))]
    message, advice = advised[0] if advised else (said[0], "")  # that it cannot come back counts more than why it left
    return f"Kueue: {message.rstrip('.')}. {advice}" if advice else f"Kueue: {message}"


def eviction(workload: Object | None) -> Eviction | None:
    """That it lost its place, once it has one again: all else that Kueue and KubeRay keep of it looks as at first."""
    evicted, admitted = (pods.condition(workload or _NOTHING, kind) for kind in ("Evicted", "Admitted"))
    back_at = pods.time(admitted.get("lastTransitionTime"))
    if back_at is None or (evicted.get("status"), admitted.get("status")) != ("False", "True"):
        return None
    return Eviction(f"Kueue: {str(evicted.get('message') or '').removeprefix('Previously: ')}", back_at)


def _advice(message: str, workload: Object) -> str:
    for pattern, advice in _ADVICE.items():
        if (found := re.search(pattern, message)) is not None:
            name = found[1] if found.re.groups else ""
            queue = (workload.get("spec") or {}).get("queueName") or "?"
            return Template(advice).substitute(
                name=name, queue=queue, space=_space(workload), workload=pods.name(workload)
            )
    return ""


def _without_workload(rayjob: Object, now: datetime) -> str:
    """Kueue makes none for a class that is missing, and tells nobody but its log and, where it is new, an event."""
    runs = "runs and manages RayJobs (kubectl get pods -n kueue-system)"
    name = pods.labels(rayjob).get(KUEUE_PRIORITY)
    if name is None:
        return overlooked(rayjob, now, "Kueue", f"it {runs}")
    missing = f"WorkloadPriorityClass {name} exists (kubectl get workloadpriorityclass {name})"
    named = "kueue.priority_classes in the profile names it"
    return overlooked(rayjob, now, "Kueue", f"{missing}; {named}. If it does, check that Kueue {runs}")


def _space(workload: Object) -> str:
    return str(workload["metadata"].get("namespace", "?"))


def overlooked(rayjob: Object, now: datetime, who: str, check: str) -> str:
    """What to check when nobody has looked at a RayJob that is not new; empty: it is new."""
    metadata = rayjob["metadata"]
    made = pods.time(metadata.get("creationTimestamp"))
    if made is None or now - made <= IGNORED:
        return ""
    seconds = (now - made).total_seconds()
    return f"{who} has not looked at RayJob {metadata['name']} for {seconds:.0f} s. Check that {check}."
