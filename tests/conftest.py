"""Puts tests/lab on the path: its workers, services and the ways to hurt them serve all suites."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "lab"))

pytest_plugins = [
    "services_lab",
    "jobs_lab",
    "service_lab",
    "api_lab",
    "up_lab",
    "browser_lab",
    "kube.fixtures",
    "kuberay_lab",
]
