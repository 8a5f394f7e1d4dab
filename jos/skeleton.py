"""`jos pipelines new`: a small pipeline that works, to begin one's own from.

Its files lie in jos/skeletons, a folder for each kind, and run there as they are, under the name my-pipeline.
May import: stdlib, jos.core. Tests: tests/unit/test_skeleton.py. For people: docs/pipelines.md.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from enum import StrEnum
from pathlib import Path

from jos.core.errors import BadRequest, Conflict

SKELETONS = Path(__file__).parent / "skeletons"
_KEY = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")  # as templates demand it, and good for a module's name


class Kind(StrEnum):
    RECORDS = "records"
    WORKER = "worker"
    TRAINER = "trainer"


def module_of(key: str) -> str:
    return key.replace("-", "_")


def write_skeleton(key: str, kind: Kind, folder: Path) -> list[Path]:
    """Writes the files of a new pipeline under `folder`, and gives their paths within it, the worker's module first.
    Raises BadRequest for a name that cannot be one, Conflict where a file exists: nothing is written then."""
    _check_name(key)
    source = SKELETONS / kind
    texts = {
        _renamed(str(path.relative_to(source)), key): _renamed(path.read_text(), key)
        for path in source.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    if there := sorted(name for name in texts if (folder / name).exists()):
        raise Conflict(
            f"{folder} has {', '.join(there)} already; nothing was written.",
            suggestion="Choose another name, or another --folder.",
        )
    try:
        for name, text in texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    except OSError as error:
        raise BadRequest(f"{error.filename or folder} cannot be written: {error.strerror}.") from error
    return sorted(map(Path, texts), key=lambda path: (len(path.parts), path))


def _renamed(text: str, key: str) -> str:
    words = key.split("-")
    names = {
        "my-pipeline": key,
        "my_pipeline": module_of(key),
        "MyPipeline": "".join(map(str.capitalize, words)),
        "My pipeline": " ".join(words).capitalize(),
    }
    return re.sub("|".join(names), lambda found: names[found[0]], text)


def _check_name(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise BadRequest(f'"{key}" cannot be the key of a pipeline: small letters, digits and single "-" can.')
    module = module_of(key)
    # workers are looked for behind everything that is installed
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None:
        raise BadRequest(
            f'"{key}" would make a module {module}, and Python has one of that name.',
            suggestion=f'Choose another name, such as "my-{key}".',
        )
