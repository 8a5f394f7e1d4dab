"""machine-state-classification, slowed down so that a test can hit it in the middle. Nothing else is changed."""

from __future__ import annotations

import time
from typing import Any

from actors.machine_state import MachineStateWorker


class SlowStates(MachineStateWorker):
    def compute(self, batch: Any) -> Any:
        time.sleep(0.05)
        return super().compute(batch)
