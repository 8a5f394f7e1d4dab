"""`jos controller`, or `python -m jos.controller`: one controller, until SIGTERM or SIGINT. Any number may run; one
leads, and the others take over within seconds.

May import: everything below the command line. Tests: tests/e2e/test_service.py.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import timedelta
from functools import partial

import structlog

from jos import recovery
from jos.controller.controller import Controller, Duties
from jos.controller.metrics import serve
from jos.controller.reconcile import Limits
from jos.core.errors import JosError
from jos.core.queues import QueueConfig
from jos.files.service import Files
from jos.launch.base import Launcher
from jos.launch.open import news_of, offers_of, open_launcher, start_seconds
from jos.logs import log_to
from jos.settings import Settings
from jos.wiring import Wired, open_queues, spare_the_collector, wired

log = structlog.get_logger()


async def run_controller(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT; the step in hand is finished and the lease released before it returns."""
    config = open_queues(settings)
    async with wired(settings) as parts:
        launcher = open_launcher(parts)
        try:
            await _run(parts, launcher, config)
        finally:
            await launcher.close()


async def _run(parts: Wired, launcher: Launcher, config: QueueConfig) -> None:
    settings = parts.settings
    days = settings.job_retention_days
    duties = Duties(
        archive=partial(recovery.put_away, parts.store, parts.storage),
        sweeps=[("files", Files(parts.store, parts.storage).prune)],
        streams_kept=timedelta(hours=settings.stream_hours),
        jobs_kept=None if days is None else timedelta(days=days),
        warm_drivers=settings.warm_drivers,
    )
    limits = Limits(start=start_seconds(settings))
    controller = Controller(
        parts.store,
        parts.storage,
        launcher,
        lambda: config,
        duties,
        limits=limits,
        offers=offers_of(launcher),
        news=news_of(launcher),
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, controller.stop)
    server = None
    if settings.controller_port:
        server = await serve(settings.controller_host, settings.controller_port, controller.metrics, controller.healthy)
    spare_the_collector()
    log.info("controller is up", launcher=settings.launcher, metrics=settings.controller_port or None)
    try:
        await controller.run()
    finally:
        if server is not None:
            server.close()
        log.info("controller is down")


def main() -> int:
    log_to(sys.stderr)
    try:
        asyncio.run(run_controller(Settings()))
    except JosError as error:
        sys.stderr.write(f"error ({error.code}): {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
