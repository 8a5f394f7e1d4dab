"""What engines of activity-detection are made with in tests."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from devices import DEVICE

from actors.engines import Generation, Place


@dataclass
class Told:
    """The events that an engine gave."""

    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def warn(self, event_type: str, message: str, **payload: Any) -> None:
        self.events.append((event_type, message, payload))


def place(told: Told | None = None, batch_size: int | None = None, threads: int = 1, **options: Any) -> Place:
    """On the device under test. `generation` and `engine` among the options."""
    return Place(
        device=DEVICE,
        threads=threads,
        generation=options.get("generation", Generation(max_new_tokens=8)),
        batch_size=batch_size,
        options=options.get("engine", {}),
        max_video_frames=16,
        stopping=threading.Event(),
        warn=(told or Told()).warn,
    )
