"""Structured logs of the service's processes, the same for all of them.

May import: structlog. Tests: tests/integration/test_api_security.py.
"""

from __future__ import annotations

import logging
from typing import Any, TextIO

import structlog


def log_to(file: TextIO, person: bool | None = None) -> None:
    """One JSON object a line, or text where a person looks at it (default: on a terminal)."""
    person = file.isatty() if person is None else person
    # never the values of local variables, as structlog has it by default: keys and passwords are among them
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    shown: list[Any] = [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
    plain = structlog.dev.ConsoleRenderer(colors=file.isatty(), exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([plain] if person else shown),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=file),
        cache_logger_on_first_use=False,
    )
