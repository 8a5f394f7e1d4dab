"""A warm driver: connected to Ray, store and storage, it waits for orders and drives one attempt after the other.

Each attempt is as it would be in a process of its own, without the seconds that starting one takes. When Ray is gone
the process ends, since nothing could mend its connection.
May import: jos.driver, jos.store, jos.wiring. Tests: tests/integration/test_driver_warm.py, test_warm_orders.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import time
from enum import StrEnum

import structlog

from jos import __version__
from jos.core.errors import JosError, NotFound, StoreUnavailable
from jos.driver import cluster
from jos.driver.attempts import Leave, run_admitted
from jos.driver.driver import Ending
from jos.store.drivers import BEAT_SECONDS, Drivers, Order
from jos.wiring import Wired

MOST_JOBS = 100  # then the process makes way for a fresh one
LOOK_SECONDS = 5.0  # how often an idle one looks whether Ray is still there
ANSWER_SECONDS = 10.0  # that Ray may take to answer
HANG_SECONDS = 120.0  # between two jobs each turn takes some seconds; a process that takes longer hangs

log = structlog.get_logger()


class Left(StrEnum):
    """Why it left."""

    ASKED = "asked to leave"
    SERVED = "served as many jobs as it may"
    OTHER_VERSION = "another version of JOS gives the orders"
    RAY_GONE = "its Ray cluster is gone"
    UNHEARD = "the record could not be told that its attempt is over"


class WarmDriver:
    def __init__(self, name: str, wired: Wired, leave: Leave, most_jobs: int = MOST_JOBS) -> None:
        self.name, self.wired, self.leave, self.most_jobs = name, wired, leave, most_jobs
        self.drivers = Drivers(wired.store.connection)
        self.served = 0
        self.ahead = 0  # processes for indexes that Ray has started ahead, as far as we know
        self.looked = time.monotonic()

    async def serve(self) -> Left:
        """Until there is a reason to leave. Raises ComputeFailed when Ray cannot be reached at first."""
        await asyncio.to_thread(cluster.connect, self.wired.settings.ray_address)
        self.leave.listen()
        await self._prepare()
        await self.drivers.register(self.name)
        log.info("waiting for orders", driver=self.name)
        try:
            return await self._serve()
        finally:
            with contextlib.suppress(StoreUnavailable):  # then its silence says it
                await self.drivers.leave(self.name)

    async def _serve(self) -> Left:
        try:
            return await self._turns()
        finally:
            faulthandler.cancel_dump_traceback_later()

    async def _turns(self) -> Left:
        while not self.leave.event.is_set():
            _end_if_it_hangs()
            order = await self._next_order()
            if order is None:
                if not await self._ray_answers(LOOK_SECONDS):
                    return Left.RAY_GONE
                continue
            if not order.job_id:
                return Left.ASKED
            if order.version != __version__:
                return Left.OTHER_VERSION
            await self._carry_out(order)
            _end_if_it_hangs()
            if not await self._is_over(order):
                return Left.UNHEARD
            if self.served >= self.most_jobs:
                return Left.SERVED
            if not await self._ray_answers(0.0):
                return Left.RAY_GONE
            await self._prepare()
        return Left.ASKED

    async def _next_order(self) -> Order | None:
        """Says that it is idle, and waits a little; None: nothing came, or it is to leave."""
        try:
            await self.drivers.beat(self.name)
            asking = asyncio.create_task(self.drivers.next_order(self.name, BEAT_SECONDS))
            leaving = asyncio.create_task(self.leave.event.wait())
            await asyncio.wait({asking, leaving}, return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
            if not asking.done():
                asking.cancel()  # an order that it may be reading is lost: another driver is given it
                return None
            return asking.result()
        except StoreUnavailable as error:
            log.warning("redis is away; waiting", driver=self.name, error=str(error))
            with contextlib.suppress(TimeoutError):  # it may refuse at once
                await asyncio.wait_for(self.leave.event.wait(), BEAT_SECONDS)
            return None

    async def _carry_out(self, order: Order) -> None:
        self.served += 1
        faulthandler.cancel_dump_traceback_later()  # from here on heartbeats say that we live
        log.info("driving", driver=self.name, job=order.job_id)
        try:
            outcome = await run_admitted(
                order.job_id, order.token, self.name, self.wired, self.leave, connecting=cluster.look, admission=0
            )
        except JosError as error:  # of this job (job.json, the record); the next one may fare better
            log.error("the attempt could not be driven", job=order.job_id, error=str(error))
            return
        self.ahead = max(0, self.ahead - outcome.processes)
        if outcome.ending is not Ending.FENCED:
            log.info(str(outcome.ending), job=order.job_id, message=outcome.message)

    async def _is_over(self, order: Order) -> bool:
        """Whether the record knows that we drive this attempt no more. If not, the controller would stop us for its
        silence while we drive the next job; that this process ends tells it at once."""
        try:
            job = await self.wired.store.get(order.job_id)
        except NotFound:
            return True
        except StoreUnavailable:
            return False
        attempt = job.attempt
        ours = attempt is not None and (attempt.token, attempt.driver) == (order.token, self.name)
        return not (ours and job.holds_capacity)

    async def _prepare(self) -> None:
        """Everything of the job before is gone, and processes for the indexes of the next one are on their way."""
        gc.collect()
        wanted = self.wired.settings.warm_indexes
        if self.ahead < wanted:
            await asyncio.to_thread(cluster.prestart, wanted - self.ahead)
            self.ahead = wanted

    async def _ray_answers(self, every: float) -> bool:
        if time.monotonic() - self.looked < every:
            return True
        answer = asyncio.create_task(asyncio.to_thread(cluster.connected))
        done, _ = await asyncio.wait({answer}, timeout=ANSWER_SECONDS)
        self.looked = time.monotonic()
        return bool(done) and answer.result()


def _end_if_it_hangs() -> None:
    """Ends this process, with all its stacks in its log, unless it comes back here or drives a job in time. It drives
    nothing, so that nobody else would stop it for its silence."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=2)
