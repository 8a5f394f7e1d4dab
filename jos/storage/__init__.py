"""Object storage: files, outputs and the commit log. Start at base.py (the seam) and log.py (the fence)."""

from jos.storage.base import Stat, Storage
from jos.storage.open import open_storage, probe

__all__ = ["Stat", "Storage", "open_storage", "probe"]
