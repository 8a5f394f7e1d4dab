"""`jos pipelines check DIR`: everything wrong with a folder of templates, their examples and, if asked, workers.

A worker is imported in a process of its own, because importing an author's code may do anything.
May import: stdlib, jos.core, jos.registry. Tests: tests/unit/test_registry.py.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jos.core.config import resolve
from jos.core.errors import ConfigInvalid, Violation
from jos.core.model import JobRequest, Json, Pipeline, PipelineStatus
from jos.registry import Template, parse_model, read_published, read_template, read_yaml, template_files

IMPORT_TIMEOUT = 300.0  # seconds; importing torch from a cold disk takes its time


@dataclass(frozen=True)
class Finding:
    """One thing wrong, and in which file."""

    file: Path
    violation: Violation

    def __str__(self) -> str:
        return f"{self.file}: {self.violation}"


@dataclass
class Report:
    """What `jos pipelines check` tells."""

    templates: list[Template] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        lines = [f"{one.key} {one.version}  {_status(one)}  {one.content_hash}" for one in self.templates]
        count = len(self.findings)
        verdict = "nothing wrong" if self.ok else "1 thing wrong" if count == 1 else f"{count} things wrong"
        return "\n".join([*lines, *map(str, self.findings), verdict])

    def to_json(self) -> Json:
        return {
            "ok": self.ok,
            "templates": [
                {"file": str(one.path), "key": one.key, "version": one.version}
                | {"status": _status(one), "content_hash": one.content_hash}
                for one in self.templates
            ],
            "findings": [{"file": str(one.file), **asdict(one.violation)} for one in self.findings],
        }


def _status(template: Template) -> str:
    return template.pipeline.status.value if template.pipeline else "broken"


def check_folder(folder: Path, *, import_worker: bool = False) -> Report:
    """`folder` holds pipelines (KEY/VERSION.yaml) or is itself one pipeline's (VERSION.yaml)."""
    report = Report()
    one_pipeline = any(folder.glob("*.yaml"))
    root = folder.parent if one_pipeline else folder
    files = [path for path in template_files(root) if not one_pipeline or path.parent == folder]
    if not files:
        report.findings.append(Finding(folder, Violation("$", "holds no template (KEY/VERSION.yaml).", "missing")))
    published = read_published(root)
    for path in files:
        template = read_template(path)
        report.templates.append(template)
        found = [*template.violations, *_check_published(template, published)]
        if import_worker and template.pipeline is not None:
            found += _check_import(template.pipeline, root)
        report.findings += [Finding(path, violation) for violation in found]
    there = {f"{one.key}/{one.version}" for one in report.templates}
    for name in sorted(published.keys() - there):
        if not one_pipeline or name.partition("/")[0] == folder.name:
            report.findings.append(
                Finding(root / f"{name}.yaml", Violation("$", "was published and is gone.", "missing"))
            )
    _check_examples(report)
    return report


def _check_published(template: Template, published: dict[str, str]) -> list[Violation]:
    known = published.get(f"{template.key}/{template.version}")
    if template.pipeline is None:
        return []
    if known is None:
        if template.pipeline.status is PipelineStatus.DRAFT:
            return []
        message = f"is {template.pipeline.status} but not in published.json: publish it with `jos pipelines publish`."
        return [Violation("$.status", message)]
    if template.pipeline.status is PipelineStatus.DRAFT:
        return [Violation("$.status", "is draft, but the version is in published.json: publish it again.")]
    if known != template.content_hash:
        message = f"was changed after it was published (now {template.content_hash}, published {known})."
        return [Violation("$", f"{message} Take the change back and make a new version.")]
    return []


def _check_examples(report: Report) -> None:
    """Each `KEY/examples/*.yaml` must be a request that its pipeline takes."""
    by_key: dict[str, list[Template]] = {}
    for template in report.templates:
        by_key.setdefault(template.key, []).append(template)
    for templates in by_key.values():
        for path in sorted((templates[0].path.parent / "examples").glob("*.yaml")):
            report.findings += [Finding(path, violation) for violation in _check_example(path, templates)]


def _check_example(path: Path, templates: list[Template]) -> list[Violation]:
    content, found = read_yaml(path)
    if found:
        return found
    request, found = parse_model(JobRequest, content)
    if request is None:
        return found
    usable = [t.pipeline for t in templates if t.pipeline is not None and not t.violations]
    if request.pipeline_version is not None:
        usable = [pipeline for pipeline in usable if pipeline.pipeline_version == request.pipeline_version]
    if request.pipeline_key != templates[0].key:
        return [Violation("$.pipeline_key", f'is "{request.pipeline_key}", not "{templates[0].key}".')]
    if not usable:
        return [Violation("$.pipeline_version", "names no sound version of this pipeline.")]
    latest = max(usable, key=lambda pipeline: [int(part) for part in pipeline.pipeline_version.split(".")])
    try:
        resolve(latest, request)
    except ConfigInvalid as error:
        return error.violations
    return []


# --- workers ------------------------------------------------------------------------------------------


def _check_import(pipeline: Pipeline, root: Path) -> list[Violation]:
    code = "import sys; from jos.registry_check import describe_worker; describe_worker(sys.argv[1])"
    paths = [str(root.absolute().parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # as for an index
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, pipeline.worker],
            capture_output=True,
            text=True,
            timeout=IMPORT_TIMEOUT,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
    except subprocess.TimeoutExpired:
        return [Violation("$.worker", f"could not be imported within {IMPORT_TIMEOUT:g} s.")]
    try:
        said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [Violation("$.worker", f"could not be imported: the process ended with {done.returncode}: {last}.")]
    if "error" in said:
        return [Violation("$.worker", said["error"])]
    found = []
    if said["trainer"] != (pipeline.pipeline_type == "training"):
        need = "Trainer" if pipeline.pipeline_type == "training" else "Worker"
        message = f'must derive from jos.worker.{need}, since this is a "{pipeline.pipeline_type}" pipeline.'
        found.append(Violation("$.worker", message))
    if said["port"] and said["port"] not in pipeline.outputs:
        message = f'does not have "{said["port"]}", the port that the worker writes to.'
        found.append(Violation("$.outputs", message, "missing"))
    return found


def describe_worker(worker: str) -> None:
    """Runs in the process of its own: imports the class and prints what it is, as one line of JSON."""
    module, _, name = worker.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever an author's module raises is what the author wants to read
        answer: dict[str, Any] = {"error": f"could not be imported: {type(error).__name__}: {error}."}
    else:
        answer = _describe(found)
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


def _describe(found: Any) -> dict[str, Any]:
    from jos.worker import Trainer, Worker

    if not isinstance(found, type) or not issubclass(found, Worker):
        return {"error": "does not derive from jos.worker.Worker."}
    return {"trainer": issubclass(found, Trainer), "port": found.port}
