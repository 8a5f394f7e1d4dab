"""JOS, the Jobs Orchestration Service: batch jobs over many files on Ray, that survive anything.

`jos.run(...)` starts a job here, `jos.Job(job_id)` takes one up, `jos.pipeline(key)` shows what one takes, and
`jos.Client()` talks to the service; each loads only when it is used, so that an index that imports `jos.worker` pays
for nothing else.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Client", "Job", "__version__", "pipeline", "pipelines", "run"]


def __getattr__(name: str) -> Any:
    if name in ("run", "Job", "pipeline", "pipelines"):
        from jos import notebook

        return getattr(notebook, name)
    if name == "Client":
        from jos.client import Client

        return Client
    raise AttributeError(f"module 'jos' has no attribute {name!r}")
