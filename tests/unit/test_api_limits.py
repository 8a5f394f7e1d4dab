"""Token buckets, and what counts as too large."""

from __future__ import annotations

import pytest

from jos.api import limits
from jos.api.limits import Buckets
from jos.core.errors import TooManyRequests


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def taken(buckets: Buckets, name: str, tries: int) -> int:
    count = 0
    for _ in range(tries):
        try:
            buckets.take(name)
            count += 1
        except TooManyRequests:
            pass
    return count


def test_a_burst_is_allowed_then_the_rate() -> None:
    clock = Clock()
    buckets = Buckets(rate=10, burst=20, clock=clock)
    assert taken(buckets, "a", 100) == 20
    with pytest.raises(TooManyRequests) as caught:
        buckets.take("a")
    assert caught.value.retry_after == pytest.approx(0.1)
    clock.now = 0.5
    assert taken(buckets, "a", 100) == 5
    clock.now = 1000
    assert taken(buckets, "a", 100) == 20
    assert taken(buckets, "b", 100) == 20  # another's share is its own


def test_a_rate_of_zero_is_no_limit() -> None:
    assert taken(Buckets(0, 0), "a", 1000) == 1000


def test_strangers_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_MOST_BUCKETS", 100)
    buckets = Buckets(1, 2, Clock())
    for number in range(1000):
        buckets.take(f"address {number}")
    assert len(buckets._buckets) == 100


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("/v0.5/keys", limits.MAX_BODY),
        ("/v0.5/batch/jobs", limits.MAX_JOB_BODY),
        ("/api/batch/jobs", limits.MAX_JOB_BODY),
        ("/v0.5/batch/jobs/job_x/cancel", limits.MAX_BODY),
        ("/v0.5/files", None),
        ("/api/v0.5/files/base64", None),
        ("/v0.5/files/uploads/initiate", limits.MAX_BODY),
        ("/v0.5/signed/parts/x/1", None),
    ],
)
def test_only_what_takes_files_has_no_limit_here(path: str, most: int | None) -> None:
    assert limits._most({"path": path}) == most
