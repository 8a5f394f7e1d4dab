"""What the API tells Prometheus at /metrics. Each app has a registry of its own, so that a process may hold several.

May import: prometheus_client. Tests: tests/integration/test_api_service.py.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "jos_api_request_seconds",
            "Time until the answer's last byte, by the route's template; streams are left out",
            ["method", "route", "status"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("jos_api_requests_in_flight", "Requests being answered", registry=self.registry)
        self.errors = Counter("jos_api_errors", "Answers of 500 and above", ["route"], registry=self.registry)
        self.listeners = Gauge("jos_api_stream_listeners", "Open event streams", registry=self.registry)
        self.feeds = Gauge("jos_api_stream_jobs", "Jobs that are listened to", registry=self.registry)
        self.sent = Counter("jos_api_stream_entries", "Events and progress entries sent", registry=self.registry)

    def page(self) -> tuple[bytes, str]:
        """(text, its media type)."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
