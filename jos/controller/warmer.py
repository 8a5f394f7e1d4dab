"""The warming loop: keeps spare drivers ready, so that a short job need not wait for Python and Ray to start.

May import: jos.controller, jos.launch.base. Tests: tests/integration/test_controller.py.
"""

from __future__ import annotations

from jos.controller.lookout import Lookout
from jos.controller.view import View
from jos.launch.base import Launcher


class Warmer:
    def __init__(self, launcher: Launcher, view: View, lookout: Lookout, count: int) -> None:
        self._launcher, self._view, self._lookout, self._count = launcher, view, lookout, count

    async def step(self) -> None:
        if self._lookout.answers:
            driving = {job.attempt.driver for job in self._view.holding if job.attempt is not None}
            await self._launcher.keep_warm(self._count, driving)
