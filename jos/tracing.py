"""OpenTelemetry, where the extra `otel` is installed and OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_TRACES_EXPORTER=console)
is set; else nothing at all happens.

A job is one trace: its id is derived from the job's, so that the spans of API, controller and drivers meet in it
though nothing is handed from one to the other. May import: opentelemetry. Tests: tests/unit/test_tracing.py.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@contextmanager
def span(name: str, job_id: str, **attributes: str | int | float | bool) -> Iterator[None]:
    """A span of the job's trace around what is done here; an exception is recorded on it."""
    tracer = _tracer()
    if tracer is None:
        yield
        return
    from opentelemetry import trace

    digest = hashlib.sha256(job_id.encode()).digest()
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    root = trace.SpanContext(
        int.from_bytes(digest[:16]), int.from_bytes(digest[16:24]), is_remote=True, trace_flags=flags
    )
    context = trace.set_span_in_context(trace.NonRecordingSpan(root))
    with tracer.start_as_current_span(name, context, attributes={"jos.job": job_id, **attributes}):
        yield


@cache
def _tracer() -> Any:
    """None: no traces are wanted, or the extra is not there."""
    console = os.environ.get("OTEL_TRACES_EXPORTER") == "console"
    wanted = console or any(os.environ.get(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT") for kind in ("", "TRACES_"))
    if not wanted:
        return None
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
    except ImportError:
        import structlog

        structlog.get_logger().warning("traces are asked for, but `pip install 'jos[otel]'` is missing")
        return None
    provider = TracerProvider(resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "jos")}))
    if console:
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.get_tracer("jos")
