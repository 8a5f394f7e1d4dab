"""Traces: one job is one trace, whichever process tells of it; without a wish for them nothing is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys

TELL = "from jos.tracing import span\nwith span({name!r}, 'job_1', attempt=1):\n    pass\n"
QUIET = (
    "import sys\nfrom jos.tracing import span\nwith span('x', 'job_1'): pass\nassert 'opentelemetry' not in sys.modules"
)


def told(name: str) -> dict[str, object]:
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "console"}
    done = subprocess.run(
        [sys.executable, "-c", TELL.format(name=name)], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_spans_of_two_processes_meet_in_the_trace_of_their_job() -> None:
    one, other = told("create"), told("attempt")
    assert one["name"] == "create"
    assert one["attributes"] == {"jos.job": "job_1", "attempt": 1}
    assert one["context"]["trace_id"] == other["context"]["trace_id"]  # type: ignore[index]
    assert one["context"]["span_id"] != other["context"]["span_id"]  # type: ignore[index]


def test_nothing_is_imported_where_no_traces_are_wanted() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    subprocess.run([sys.executable, "-c", QUIET], env=environment, check=True)
