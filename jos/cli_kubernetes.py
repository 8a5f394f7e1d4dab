"""`jos render`: a job as manifests for `kubectl apply`, for a cluster with KubeRay and no service of JOS.

May import: jos.launch, jos.request, jos.terminal. Tests: tests/e2e/test_render.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer

from jos.core.errors import BadRequest
from jos.core.ids import is_id
from jos.request import read_request
from jos.settings import Settings
from jos.terminal import AsJson, err, out, told


def render(
    file: Annotated[Path, typer.Argument(help="A job.yaml whose inputs are URLs.")],
    profile: Annotated[
        Path | None,
        typer.Option(envvar="JOS_KUBE", help="A YAML file of how the cluster's pods are made; default: JOS_KUBE."),
    ] = None,
    job_id: Annotated[
        str | None, typer.Option(help="The job's id, job_…; default: from the request, so that it is one job.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a job's manifests: `jos render job.yaml | kubectl apply -f -` runs it on Kubernetes without the service."""
    from jos.launch.kube_profile import read_profile
    from jos.launch.rayjob import to_yaml
    from jos.launch.rendered import lacking, rendered
    from jos.wiring import open_registry

    with told(as_json):
        if job_id is not None and not is_id(job_id, "job"):
            raise BadRequest(f"--job-id {job_id!r} is no job's id.", suggestion="It is job_ and 26 characters.")
        request = read_request(file)
        pipeline = open_registry(Settings()).get(request.pipeline_key, request.pipeline_version)
        chosen = read_profile(profile)
        job_id, manifests = rendered(request, pipeline, chosen, job_id)
        if as_json:
            listed = {"apiVersion": "v1", "kind": "List", "items": manifests}
            text = orjson.dumps(listed, option=orjson.OPT_INDENT_2).decode() + "\n"
        else:
            text = to_yaml(manifests)
        _write(text, output)
        if missing := lacking(chosen):
            err.print(f"[yellow]warning[/]: {missing}", highlight=False)
        if output is not None:
            err.print(f"{job_id}: run it with [bold]kubectl apply -f {output}[/]", highlight=False)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        out.file.write(text)
        return
    try:
        output.write_text(text)
    except OSError as error:
        raise BadRequest(f"{output} cannot be written: {error.strerror}.") from error
