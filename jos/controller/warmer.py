"""The warming loop: keeps spare drivers ready, so that a short job need not wait for Python and Ray to start.

May import: jos.controller, jos.launch.base. Tests: tests/integration/test_controller.py.
"""

from __future__ import annotations

from jos.controller.lookout import Lookout
from jos.launch.base import Launcher


class Warmer:
    def __init__(self, launcher: Launcher, lookout: Lookout, count: int) -> None:
        self._launcher, self._lookout, self._count = launcher, lookout, count

    async def step(self) -> None:
        if self._lookout.answers:
            await self._launcher.keep_warm(self._count)
