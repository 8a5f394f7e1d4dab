"""What `jos doctor` shows."""

from __future__ import annotations

from jos.doctor import _where
from jos.settings import Settings


def test_a_password_of_redis_is_shown_to_nobody() -> None:
    assert "hush" not in _where(Settings(redis_url="rediss://jos:hush@redis.example:6380/0"))
    assert "hush" not in _where(Settings(redis_url="redis://redis.example:6379/0?password=hush"))
    assert _where(Settings(redis_url="redis://redis.example:6379/0")) == "redis://redis.example:6379/0"
