"""What a caller names as inputs, told apart: files of this machine, which are uploaded first, and files that the server
has already.

May import: jos.core, jos.request, jos.client.files. Tests: tests/unit/test_client_inputs.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jos.client.files import distinct, expand
from jos.core.errors import BadRequest, ConfigInvalid, Violation
from jos.core.model import InputRef
from jos.request import listed, port_name, reference

# A path; (path, class); {"file_id": …, "metadata": {…}}; {"kind": "checkpoint", …}; or a list of these.
Given = Any


@dataclass
class Named:
    """The inputs of a request by name, and the local files that must be on the server under those names."""

    inputs: dict[str, list[InputRef]] = field(default_factory=dict)
    local: list[Path] = field(default_factory=list)


def sort_out(inputs: Mapping[str, Given], folder: Path) -> Named:
    """A name is a local file if there is one, below `folder` for relative ones; a Path or a name with a slash or a
    star must be one; anything else is the name of an uploaded file. All that is wrong is told at once."""
    named, violations = Named(), list[Violation]()
    for port, given in inputs.items():
        full = port_name(port)
        refs = named.inputs.setdefault(full, [])
        for at, one in enumerate(listed(given)):
            try:
                made, local = _one(one, folder)
            except BadRequest as error:
                violations.append(Violation(f'$.inputs["{full}"][{at}]', str(error), "missing"))
                continue
            refs += made
            named.local += local
    if violations:
        raise ConfigInvalid("some inputs cannot be used.", violations)
    named.local = distinct(named.local)
    return named


def _one(given: Given, folder: Path) -> tuple[list[InputRef], list[Path]]:
    try:
        ref = InputRef.model_validate(reference(given))
    except ValidationError as error:
        raise BadRequest(f"{given!r} is no input: give a path, (path, class), or a mapping with file_id.") from error
    if ref.file_id is None:
        return [ref], []
    if "://" in ref.file_id:
        raise BadRequest(
            f"{ref.file_id} is a URL; the service reads uploaded files.",
            suggestion="Upload it (`jos upload`), or run the job with the engine (`jos run`), which reads URLs.",
        )
    path = folder / Path(ref.file_id).expanduser()
    must_be = "/" in ref.file_id or any(c in ref.file_id for c in "*?[") or isinstance(given, Path)
    if not path.exists() and not must_be:
        return [ref], []
    files = expand(path)
    return [ref.model_copy(update={"file_id": p.name}) for p in files], files
