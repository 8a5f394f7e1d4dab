"""The pipeline templates that JOS knows: `FOLDER/KEY/VERSION.yaml`, read when they are asked for.

A published version never changes: `FOLDER/published.json` keeps the SHA-256 of each one's content, and a template
that no longer agrees with it is refused. Its status alone may still go from published to deactivated.
May import: stdlib, pyyaml, jos.core; never a worker (jos.registry_check does, in a process of its own).
Tests: tests/unit/test_registry.py. For people: docs/pipelines.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from jos.core.errors import ConfigInvalid, Conflict, NotFound, Violation
from jos.core.ids import derived_id
from jos.core.model import Pipeline, PipelineStatus
from jos.core.schema import did_you_mean, json_path, not_json
from jos.core.template import check_template

PUBLISHED = "published.json"
M = TypeVar("M", bound=BaseModel)
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def packaged_folder() -> Path:
    """JOS's own templates: inside an installed wheel, or beside the package in a checkout."""
    inside = Path(__file__).parent / "_pipelines"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "pipelines"


def pipeline_id(key: str, version: str) -> str:
    """`ppl_…`, the same on every installation, since templates are files and nobody hands out their ids."""
    return derived_id("ppl", key, version)


def component_id(key: str, version: str, component: str) -> str:
    return derived_id("cmp", key, version, component)


@dataclass
class Template:
    """One template file. `pipeline` is None when the file is too broken to be one."""

    path: Path
    key: str
    version: str
    pipeline: Pipeline | None = None
    content_hash: str = ""  # of everything but the status
    violations: list[Violation] = field(default_factory=list)


class Registry:
    """All templates of some folders. Files are read again when they change, so a new version needs no restart."""

    def __init__(self, extra: Sequence[str | os.PathLike[str]] = ()) -> None:
        """JOS's own folder, and the `extra` ones."""
        self.folders = [packaged_folder(), *(Path(folder) for folder in extra)]
        self._read: dict[Path, tuple[tuple[int, int], Template]] = {}

    def get(self, key: str, version: str | None = None) -> Pipeline:
        """The named version, or the latest published one. A draft runs only when it is named.

        Raises NotFound, Conflict (deactivated, or changed after publication) or ConfigInvalid (a broken template).
        """
        templates = list(self._templates())
        versions = {one.version: one for one in templates if one.key == key and not _deleted(one)}
        if not versions:
            hint = did_you_mean(key, {one.key for one in templates}).strip()
            raise NotFound(f'There is no pipeline "{key}".', suggestion=hint or None)
        if version is None:
            version = self._latest(key, versions)
        if version not in versions:
            raise NotFound(f'Pipeline "{key}" has no version "{version}".', suggestion=_known(versions))
        return _runnable(versions[version], versions)

    def by_id(self, wanted: str) -> Pipeline:
        for pipeline in self.list():
            if pipeline_id(pipeline.pipeline_key, pipeline.pipeline_version) == wanted:
                return pipeline
        raise NotFound(f'There is no pipeline "{wanted}".')

    def changed_at(self, key: str, version: str) -> datetime:
        """When the file of a version was last written."""
        for folder in self.folders:
            path = folder / key / f"{version}.yaml"
            if path in self._read:
                return datetime.fromtimestamp(self._read[path][0][0] / 1e9, UTC)
        raise NotFound(f'Pipeline "{key}" has no version "{version}".')

    def problems(self) -> list[Template]:
        """The templates that cannot run as they are, for whoever starts the service to see."""
        return [one for one in self._templates() if one.violations]

    @staticmethod
    def _latest(key: str, versions: dict[str, Template]) -> str:
        published = [v for v, one in versions.items() if one.pipeline and one.pipeline.status == "published"]
        if not published:
            raise NotFound(f'Pipeline "{key}" has no published version.', suggestion=_known(versions))
        return max(published, key=_order)

    def _templates(self) -> Iterator[Template]:
        seen: set[tuple[str, str]] = set()
        for folder in self.folders:
            published = read_published(folder)
            for path in template_files(folder):
                one = self._load(path)
                if (one.key, one.version) not in seen:  # an earlier folder wins, as in PATH
                    seen.add((one.key, one.version))
                    changed = _changed(one, published)
                    yield one if changed is None else _with(one, changed)

    def _load(self, path: Path) -> Template:
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        known = self._read.get(path)
        if known is None or known[0] != stamp:
            known = self._read[path] = (stamp, read_template(path))
        return known[1]

    def list(self) -> list[Pipeline]:
        """Every version that can be read and is not deleted: by key, newest version first."""
        found = [one.pipeline for one in self._templates() if one.pipeline is not None and not _deleted(one)]
        found.sort(key=lambda pipeline: _order(pipeline.pipeline_version), reverse=True)
        return sorted(found, key=lambda pipeline: pipeline.pipeline_key)


def _deleted(template: Template) -> bool:
    return template.pipeline is not None and template.pipeline.status is PipelineStatus.DELETED


def _runnable(template: Template, versions: dict[str, Template]) -> Pipeline:
    name = f"{template.key} {template.version}"
    if template.violations or template.pipeline is None:
        raise ConfigInvalid(f"The template of pipeline {name} is broken ({template.path}).", template.violations)
    if template.pipeline.status is PipelineStatus.DEACTIVATED:
        raise Conflict(f"Pipeline {name} is deactivated: it takes no new jobs.", suggestion=_known(versions))
    return template.pipeline


def _known(versions: dict[str, Template]) -> str:
    words = []
    for version in sorted(versions, key=_order, reverse=True):
        pipeline = versions[version].pipeline
        words.append(f"{version} ({pipeline.status if pipeline else 'broken'})")
    return f"Known versions: {', '.join(words)}. A draft runs only when its version is named."


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")) if _VERSION.fullmatch(version) else (-1,)


# --- files --------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML without its worst surprise: a key given twice is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f'"{key.value}" is given twice', key.start_mark)
                seen.add(key.value)
        return node


def read_yaml(path: Path) -> tuple[Any, list[Violation]]:
    """The file's content, or what keeps it from being read, with line and column."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader), []
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return None, [Violation("$", f"{where}{error.problem or error}.")]
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        return None, [Violation("$", f"cannot be read: {error}.")]


def template_files(folder: Path) -> list[Path]:
    """The template files of a folder of pipelines, in order."""
    return sorted(path for path in folder.glob("*/*.yaml") if not path.name.startswith("."))


def read_template(path: Path) -> Template:
    """A template with everything that is wrong with it, except what needs its worker or `published.json`."""
    template = Template(path=path, key=path.parent.name, version=path.stem)
    content, template.violations = read_yaml(path)
    if template.violations:
        return template
    if not _VERSION.fullmatch(template.version):
        template.violations.append(Violation("$", "the file's name must be a version, e.g. 1.0.0.yaml."))
    template.violations += not_json(content, ())
    if template.violations:
        return template
    template.content_hash = content_hash(content)
    template.pipeline, template.violations = parse_model(Pipeline, content)
    if template.pipeline is not None:
        for name, expected in (("pipeline_key", template.key), ("pipeline_version", template.version)):
            if getattr(template.pipeline, name) != expected:
                message = f'is "{getattr(template.pipeline, name)}", but the file lies at {template.key}/{path.name}.'
                template.violations.append(Violation(f"$.{name}", message))
        template.violations += check_template(template.pipeline)
    return template


def parse_model(model: type[M], content: Any) -> tuple[M | None, list[Violation]]:
    """pydantic's findings as violations with JSON paths."""
    try:
        return model.model_validate(content), []
    except ValidationError as error:
        found = []
        for one in error.errors(include_url=False):
            path = json_path(one["loc"])
            if one["type"] == "extra_forbidden":
                hint = did_you_mean(str(one["loc"][-1]), model.model_fields) if len(one["loc"]) == 1 else ""
                found.append(Violation(path, f"is not a known field.{hint}", "unknown"))
            elif one["type"] == "missing":
                found.append(Violation(path, "is required.", "missing"))
            else:
                found.append(Violation(path, f"{one['msg']}."))
        return None, found


# --- published versions -------------------------------------------------------------------------------


def content_hash(content: Any) -> str:
    """Of what the template says, not of how the file is laid out: comments may be mended. The status is left out,
    since deactivating a version does not change what its jobs do."""
    rest = (
        {name: value for name, value in content.items() if name != "status"} if isinstance(content, dict) else content
    )
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def read_published(folder: Path) -> dict[str, str]:
    """ "KEY/VERSION" -> hash, of every version of the folder that was ever published."""
    path = folder / PUBLISHED
    if not path.exists():
        return {}
    try:
        published: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigInvalid(f"{path} cannot be read as JSON: {error}.", []) from error
    return published


def _changed(template: Template, published: dict[str, str]) -> Violation | None:
    known = published.get(f"{template.key}/{template.version}")
    if known is None or not template.content_hash or known == template.content_hash:
        return None
    return Violation("$", f"was changed after it was published: {known} was recorded. Make a new version of it.")


def _with(template: Template, violation: Violation) -> Template:
    changed = Template(**vars(template))
    changed.violations = [*template.violations, violation]
    return changed


def publish(folder: Path, key: str, version: str) -> str:
    """Mark a draft as published and record its hash, which is returned. Again for the same content: no change.

    Raises NotFound, ConfigInvalid (the template is broken) or Conflict (another content was published before).
    """
    path = folder / key / f"{version}.yaml"
    if path not in template_files(folder):
        raise NotFound(f'There is no template "{key}/{version}.yaml" in {folder}.')
    template = read_template(path)
    if template.violations or template.pipeline is None:
        raise ConfigInvalid(f"{key} {version} cannot be published.", template.violations)
    if template.pipeline.status not in (PipelineStatus.DRAFT, PipelineStatus.PUBLISHED):
        raise Conflict(f"{key} {version} is {template.pipeline.status}: only a draft can be published.")
    published = read_published(folder)
    changed = _changed(template, published)
    if changed is not None:
        raise Conflict(f"{key} {version} {changed.message}")
    published[f"{key}/{version}"] = template.content_hash
    # the hash first: a crash in between leaves a draft that may still be published, never an unguarded version
    _replace(folder / PUBLISHED, json.dumps(published, indent=2, sort_keys=True) + "\n")
    text = path.read_text(encoding="utf-8")
    marked, count = re.subn(r"(?m)^status:[ \t]*\S+", "status: published", text)
    _replace(path, marked if count else f"{text.rstrip()}\nstatus: published\n")
    return template.content_hash


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False, encoding="utf-8") as file:
        file.write(text)
    mode = path.stat().st_mode if path.exists() else 0o644
    os.chmod(file.name, mode & 0o777)
    os.replace(file.name, path)
