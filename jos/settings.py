"""Settings, from the environment (JOS_…) or the command line. All have defaults that work on a laptop.

May import: pydantic-settings. Tests: tests/unit/test_settings.py. For people: docs/settings.md.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="JOS_", extra="ignore")

    home: Path = Field(
        default=Path("~/.jos"), description="the folder of the embedded defaults: Redis data, storage, logs"
    )
    redis_url: str | None = Field(
        default=None, description="redis://, rediss:// or unix://; default: a Valkey of JOS's own under the home"
    )
    storage: str | None = Field(
        default=None, description="a folder, s3://bucket/prefix or gs://bucket/prefix; default: HOME/storage"
    )
    ray_address: str | None = Field(
        default=None, description="host:port or auto; default: RAY_ADDRESS, else a small Ray of the job's own"
    )
    pipelines: str = Field(default="", description="more folders of pipelines, separated like PATH")
    org: str = Field(default="org_local", description="the organisation that jobs belong to")

    @property
    def home_dir(self) -> Path:
        return self.home.expanduser().absolute()

    @property
    def redis_dir(self) -> Path:
        return self.home_dir / "redis"

    @property
    def log_dir(self) -> Path:
        return self.home_dir / "logs"

    @property
    def storage_url(self) -> str:
        if self.storage is None:
            return str(self.home_dir / "storage")
        return self.storage if "://" in self.storage else str(Path(self.storage).expanduser().absolute())
