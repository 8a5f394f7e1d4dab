"""The Python client of the JOS service: `jos.Client()`. Light to import: no Ray, no torch, no server.

May import: jos.wire, jos.core, jos.request, jos.profiles. Tests: tests/unit/test_client_*.py, tests/e2e/test_client.py.
For people: docs/client.md.
"""

from jos.client.client import Client
from jos.client.errors import JobFailed, ServerFault, ServerUnreachable
from jos.client.handles import Job

__all__ = ["Client", "Job", "JobFailed", "ServerFault", "ServerUnreachable"]
