"""What an index takes from outside of JOS: a worker's class, the plans that it makes and what it writes; each refused
with its name where it breaks the contract of jos.worker.

May import: jos.core, jos.worker. Worker classes are imported here and nowhere else. Tests: tests/unit/test_index.py.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from typing import Any

import orjson

from jos.core.errors import JobImpossible
from jos.core.plan import InputPlan
from jos.worker import Output, Plan, Worker


def load_worker(path: str, import_paths: tuple[str, ...] = ()) -> type[Worker]:
    """The class behind `package.module:Class`. Raises JobImpossible with what is wrong."""
    for extra in import_paths:
        if extra not in sys.path:
            sys.path.append(extra)
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise JobImpossible(
            f"the pipeline's worker {path} cannot be imported: {error}.",
            suggestion="Install what it needs where the indexes run (for JOS's own pipelines: jos[torch]).",
        ) from error
    if not (isinstance(found, type) and issubclass(found, Worker)):
        raise JobImpossible(f"{path} is not a jos.worker.Worker")
    return found


def checked_output(output: Any, worker: str) -> Output:
    """What `write` returned, refused where it breaks the contract: in the index a mistake has a name, later it
    would be a dead process."""
    if not isinstance(output, Output) or not isinstance(output.body, bytes):
        raise TypeError(f"{worker}.write must return a jos.worker.Output of bytes, not {type(output).__name__}")
    if not all(isinstance(t, int) and isinstance(m, str) for t, m in output.failures.items()):
        raise TypeError(f"{worker}.write: failures must map task numbers to messages")
    return output


def checked_plan(ordinal: int, plan: Plan, port: str) -> InputPlan:
    """A worker's plan of an input whose outputs go to `port`."""
    bounds = [int(b) for b in plan.bounds] or [0]
    if bounds[0] != 0 or any(a >= b for a, b in itertools.pairwise(bounds)):
        raise ValueError("the worker's plan is wrong: bounds must begin at 0 and grow")
    if plan.hints and len(plan.hints) != len(bounds) - 1:
        raise ValueError(f"the worker's plan is wrong: {len(plan.hints)} hints for {len(bounds) - 1} spans")
    if plan.output_name is not None:
        _check_name(plan.output_name, split=plan.part_tasks is not None)
    return InputPlan(
        ordinal,
        bounds,
        # hints as JSON has them, so that this index and one that reads the stored plan see the same
        orjson.loads(orjson.dumps(list(plan.hints), option=orjson.OPT_SERIALIZE_NUMPY)),
        plan.part_tasks,
        plan.output_name,
        plan.header if plan.output_name else b"",
        port if plan.output_name else "",
        plan.message,
        group=max(1, int(plan.group)),
    )


def _check_name(name: str, split: bool) -> None:
    """Two outputs of one name would hide one another."""
    try:
        one, two = (name.format(input_id=i, file_uid=i, stem="s", part=p) for i, p in (("a", 0), ("b", 0)))
        other = name.format(input_id="a", file_uid="a", stem="s", part=1)
    except (KeyError, IndexError, ValueError) as error:
        text = f"the worker's output_name {name!r} is no format of input_id, file_uid, stem, part"
        raise ValueError(text) from error
    if one == two or (split and one == other):
        needed = "{input_id} or {file_uid}" + (" and {part}" if split else "")
        raise ValueError(f"the worker's output_name {name!r} must hold {needed}")
