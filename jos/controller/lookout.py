"""What can be known of drivers: what the launcher says of their processes, and when each was last heard.

Heartbeats are timed by their arrival here, so that clocks of other machines do not matter; and nobody was silent
while we were not listening (Redis away, this process paused), so each time we begin anew everybody is given time.
May import: jos.controller.reconcile, jos.launch.base, jos.store. Tests: tests/unit/test_lookout.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from jos.controller.reconcile import Sight
from jos.core.model import Job
from jos.core.snapshot import Node
from jos.launch.base import DriverSeen, Launcher, Offer, Offers
from jos.store.beats import Beat

GAP = timedelta(seconds=5)  # between two looks at the heartbeats: nobody listened in between
ANSWER = 10.0  # seconds for the launcher to answer
NODES_EVERY = timedelta(seconds=2)

log = structlog.get_logger()


@dataclass(frozen=True)
class Heard:
    beat: Beat
    at: datetime


class Lookout:
    def __init__(self, launcher: Launcher, now: datetime, offers: Offers | None = None) -> None:
        self._launcher = launcher
        self._offers = offers
        self.offers: Mapping[str, Offer] = {}  # what stands in the cluster's own queue, by job
        self.drivers: Mapping[str, DriverSeen] = {}
        self.nodes: tuple[Node, ...] | None = None
        self.answers = False
        self.since = now  # it has answered, or has not, since then
        self._nodes_at: datetime | None = None
        self._heard: dict[str, Heard] = {}
        self._listening_since = now
        self._listened: datetime | None = None

    @property
    def optional_gpus(self) -> bool:
        return self._launcher.optional_gpus

    async def look(self, now: datetime) -> None:
        """Asks the launcher. While it does not answer, its drivers are unknown and nothing is admitted."""
        try:
            async with asyncio.timeout(ANSWER):
                drivers = await self._launcher.seen()
                offers = await self._offers.offered() if self._offers is not None else {}
                if self._nodes_at is None or now - self._nodes_at >= NODES_EVERY:
                    self.nodes = await self._launcher.nodes()
                    self._nodes_at = now
        except Exception as error:  # whatever it is, nothing is known of the drivers
            self.drivers, self.offers, self._nodes_at = {}, {}, None
            return self._answered(False, now, f"{type(error).__name__}: {error}")
        self.drivers, self.offers = drivers, offers
        self._answered(True, now)

    def news(self, told: Mapping[str, DriverSeen]) -> list[str]:
        """Takes what happened since the last look; the names of drivers of which something else is known now."""
        new = [name for name, driver in told.items() if self.drivers.get(name) != driver] if self.answers else []
        self.drivers = {**self.drivers, **{name: told[name] for name in new}}
        return new

    def _answered(self, answers: bool, now: datetime, error: str = "") -> None:
        if answers != self.answers:
            self.answers, self.since = answers, now
            if answers:
                log.info("the cluster answers", drivers=len(self.drivers))
            else:
                log.warning("the cluster does not answer; nothing is admitted until it does", error=error)

    def hear(self, holding: Sequence[Job], beats: Mapping[str, Beat], now: datetime) -> None:
        """Takes the heartbeats of all jobs that hold capacity."""
        before, self._heard = self._heard, {}
        if self._listened is None or not timedelta() <= now - self._listened <= GAP:  # or the clock was put back
            self._listening_since, before = now, {}
        self._listened = now
        for job in holding:
            beat, known = beats.get(job.id), before.get(job.id)
            if beat is not None and job.attempt is not None and beat[0] == job.attempt.token:
                same = known is not None and known.beat == beat
                self._heard[job.id] = known if same and known is not None else Heard(beat, now)

    def sight(self, job: Job) -> Sight:
        attempt = job.attempt
        assert attempt is not None
        name = attempt.driver or self._launcher.name_of(job)
        heard = self._heard.get(job.id)
        floor = max(attempt.admitted_at, self._listening_since)
        driver = self.drivers.get(name)
        if driver is not None and driver.token not in ("", attempt.token):
            driver = None  # called the same, of an attempt that this store knows nothing of
        return Sight(
            name=name,
            driver=driver,
            answers=self.answers,
            since=self.since,
            heard=max(floor, heard.at) if heard else floor,
            beats=heard is not None,
            displaced=self._displaced(job.id, attempt.token),
        )

    @property
    def offering(self) -> bool:
        """Whether the cluster's own queue admits."""
        return self._offers is not None

    def _displaced(self, job_id: str, token: str) -> str | None:
        offer = self.offers.get(job_id)
        return offer.message if offer is not None and offer.token == token and not offer.admitted else None

    def needed(self, holding: Sequence[Job]) -> set[str]:
        """The names of all drivers that have something to drive."""
        taken = {job.attempt.driver for job in holding if job.attempt is not None}
        return taken | {self._launcher.name_of(job) for job in holding}
