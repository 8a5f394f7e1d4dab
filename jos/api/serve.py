"""The API as a process: uvicorn with JOS's limits, logs and way of ending.

May import: uvicorn, structlog, jos.api. Tests: tests/integration/test_api_stream.py.
"""

from __future__ import annotations

import signal
import socket
import sys

import uvicorn
from fastapi import FastAPI

from jos.api.app import create_app
from jos.logs import log_to
from jos.settings import Settings
from jos.wiring import spare_the_collector

GRACE = 20  # seconds that requests have to finish


class Server(uvicorn.Server):
    """Tells the open event streams to end before it waits for what is still being answered."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service = getattr(self._app.state, "service", None)
        if service is not None:
            service.hub.close()
        await super().shutdown(sockets)


def server(app: FastAPI, host: str, port: int) -> Server:
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,  # jos.api.frame writes a better one
        log_config=None,
        server_header=False,
        timeout_keep_alive=75,  # longer than the usual proxy's, so that it is the proxy that closes
        timeout_graceful_shutdown=GRACE,
        proxy_headers=False,  # JOS_PUBLIC_URL says how clients reach this API; a header could lie
        backlog=2048,
    )
    return Server(config, app)


def serve(settings: Settings | None = None) -> None:
    """Runs until SIGTERM or SIGINT. Raises the errors of what cannot be opened."""
    log_to(sys.stderr)
    settings = settings or Settings()
    # uvicorn raises the signal again when it has ended in good order: for JOS that is an end like any other
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    app = create_app(settings)
    spare_the_collector()
    server(app, settings.api_host, settings.api_port).run()
