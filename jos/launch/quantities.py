"""Kubernetes' notation of amounts: `500m` CPUs, `2Gi` bytes.

May import: stdlib. Tests: tests/unit/test_kube_profile.py.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([kMGTP]|[KMGTP]i|m)?")
_FACTORS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTP", 1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTP", 1)},
}


def amount(quantity: str) -> Decimal:
    """What a quantity means, in CPUs or bytes. Raises ValueError."""
    found = _QUANTITY.fullmatch(quantity)
    if found is None:
        raise ValueError(f"{quantity!r} is no quantity of Kubernetes: write 500m or 2 for CPUs, 512Mi or 4Gi for bytes")
    return Decimal(found[1]) * _FACTORS[found[2] or ""]


def in_bytes(quantity: str) -> int:
    return math.ceil(amount(quantity))


def of_bytes(count: int) -> str:
    """In the largest unit that says it without a fraction."""
    for unit in ("Gi", "Mi", "Ki"):
        if count and count % int(_FACTORS[unit]) == 0:
            return f"{count // int(_FACTORS[unit])}{unit}"
    return str(count)


def of_cpus(count: float) -> str:
    """Rounded up to what Kubernetes can tell apart."""
    thousandths = math.ceil(round(count * 1000, 6))
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)
