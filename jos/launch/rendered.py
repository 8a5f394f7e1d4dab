"""A job without the service: the manifests that a person applies, and the cluster does the rest.

The driver is `python -m jos.driver run`, which makes its own attempts one after the other. So what an attempt has from
the controller it does not have: grants of indexes, and an end to what an operator's retries would begin anew.
May import: jos.core, jos.launch, jos.storage. Tests: tests/unit/test_rayjob.py, tests/e2e/test_render.py.
For people: docs/kubernetes-profile.md.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from jos.core import config
from jos.core.errors import ConfigInvalid, InputInvalid, Violation
from jos.core.ids import derived_id
from jos.core.model import JobRequest, Json, Pipeline
from jos.core.schema import json_path
from jos.launch.kube_profile import KubeProfile
from jos.launch.rayjob import JOB, MANAGED_BY, PREFIX, Launch, kubernetes_name, manifest, to_yaml
from jos.launch.rayjob_pods import JOB_FILE
from jos.storage.source import locate

BY = "jos-render"  # not `jos`: a service in the same namespace leaves alone what it did not begin


def rendered(
    request: JobRequest, pipeline: Pipeline, profile: KubeProfile, job_id: str | None = None
) -> tuple[str, list[Json]]:
    """The job's id, and a ConfigMap with the request and the RayJob that runs it. The id comes from the request where
    none is given: the same request gives the same bytes, and applied twice it is one job. Raises ConfigInvalid with
    every mistake."""
    parameters = _checked(request, pipeline)
    asked = request.model_copy(update={"pipeline_version": pipeline.pipeline_version})
    text = to_yaml([asked.model_dump(mode="json", exclude_unset=True)]).removeprefix("---\n")
    job_id = job_id or derived_id("job", text)
    name = f"{PREFIX}{job_id}"
    labels = {JOB: job_id, MANAGED_BY: BY}
    command = [*pipeline.command, "run", str(JOB_FILE), "--job-id", job_id]
    launch = Launch(
        name=name,
        entrypoint=shlex.join(command),
        pipeline_key=pipeline.pipeline_key,
        image=pipeline.image,
        resources=pipeline.resources,
        indexes=int(parameters[next(iter(pipeline.default_config))]["parallelism"]),
        drain=pipeline.timeouts.drain,
        queue=pipeline.queue,
        priority=pipeline.priority if request.priority is None else request.priority,
        labels=labels,
        metadata={"job": job_id},
        job_file=kubernetes_name(name),
    )
    job = manifest(launch, _standing(profile))
    metadata = {
        "name": launch.job_file,
        "namespace": profile.namespace,
        "labels": {**profile.labels, **labels},
    }
    file = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {JOB_FILE.name: text}}
    return job_id, [file, job]


def _standing(profile: KubeProfile) -> KubeProfile:
    """Fixed workers where nothing else was asked for: a driver that nobody grants indexes takes what stands when it
    looks, and so many train together."""
    if profile.workers.mode is not None:
        return profile
    return profile.model_copy(update={"workers": profile.workers.model_copy(update={"mode": "fixed"})})


def _checked(request: JobRequest, pipeline: Pipeline) -> dict[str, Json]:
    local = list(_local_inputs(request))
    try:
        parameters = config.resolve(pipeline, request, model_files=True)
    except ConfigInvalid as error:
        raise ConfigInvalid(error.message, [*error.violations, *local]) from None
    if local:
        raise ConfigInvalid("The cluster cannot read all inputs.", local)
    return parameters


def _local_inputs(request: JobRequest) -> Iterator[Violation]:
    for port, refs in request.inputs.items():
        for number, ref in enumerate(refs):
            if ref.file_id is None or _is_url(ref.file_id):
                continue
            path = json_path(["inputs", port, number, "file_id"])
            yield Violation(
                path,
                f"{ref.file_id} is a file of this machine, which the cluster cannot see: copy it to a store that both "
                "can read, and name it by its URL (s3://…, gs://…, https://…).",
            )


def _is_url(text: str) -> bool:
    try:
        return locate(text)[0] != "file"
    except InputInvalid:  # memory://
        return False


def lacking(profile: KubeProfile) -> str | None:
    """What a driver in the cluster would miss, as far as the profile shows it."""
    given = {*profile.env, *profile.secret_env}
    missing = [name for name in ("JOS_STORAGE", "JOS_REDIS_URL") if name not in given]
    if not missing or profile.env_from:
        return None
    return (
        f"The profile gives drivers no {' and no '.join(missing)}: what they keep would be gone with their pods. "
        "Name them in env, secret_env or env_from."
    )
