"""JOS, the Jobs Orchestration Service: batch jobs over many files on Ray, that survive anything.

`jos.run(...)` starts a job, `jos.Job(job_id)` takes one up; both load only when they are used, so that an index
that imports `jos.worker` pays for nothing else.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Job", "__version__", "run"]


def __getattr__(name: str) -> Any:
    if name in ("run", "Job"):
        from jos import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module 'jos' has no attribute {name!r}")
