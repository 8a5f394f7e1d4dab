"""Settings, from the environment (JOS_…) or the command line. All have defaults that work on a laptop.

May import: pydantic-settings. Tests: tests/unit/test_docs.py. For people: docs/settings.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

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
    api_host: str = Field(default="127.0.0.1", description="where the API listens; 0.0.0.0 for every interface")
    api_port: int = Field(default=8321, description="the API's port")
    public_url: str | None = Field(
        default=None, description="the address clients reach the API by, e.g. https://jos.example; default: as asked"
    )
    queues: Path | None = Field(default=None, description="a YAML file of queues, routes and organisations")
    rate_limit: float = Field(
        default=200, ge=0, description="requests a second of one API key to one API process; twice as many at once"
    )
    open_uploads: int = Field(
        default=1000, ge=1, description="uploads in parts that one organisation may have under way"
    )
    ray_dashboard: str | None = Field(
        default=None, description="http://host:8265 of the cluster that the controller submits drivers to"
    )
    launcher: Literal["ray_jobs", "kuberay"] = Field(
        default="ray_jobs",
        description="how drivers are started: as Ray Jobs on a cluster that runs (JOS_RAY_DASHBOARD), or each with a "
        "cluster of its own, as a RayJob on Kubernetes",
    )
    kube: Path | None = Field(
        default=None, description="with the launcher kuberay: a YAML file that says how pods are made"
    )
    warm_drivers: int = Field(
        default=1, description="spare drivers that wait for a job, so that short jobs start at once"
    )
    warm_indexes: int = Field(
        default=1, description="worker processes that each spare driver has Ray start ahead, with torch imported"
    )
    pass_env: str = Field(
        default="",
        description="names of variables that are passed to drivers on a cluster not JOS's own, separated by commas; "
        "their values can be seen in the Ray dashboard; `jos up` adds those that drivers need and that hold no secret, "
        "but for names with a minus before them",
    )
    start_timeout: float | None = Field(
        default=None,
        gt=0,
        description="seconds for an admitted job's driver to come up; default: 120, and on Kubernetes a minute more "
        "than its pods may take",
    )
    controller_host: str = Field(default="127.0.0.1", description="where the controller's /metrics and /healthz listen")
    controller_port: int = Field(default=0, description="their port; 0: they are not served")
    job_retention_days: float | None = Field(
        default=None, gt=0, description="days after their end when jobs are removed, with their outputs; default: never"
    )
    stream_hours: float = Field(
        default=24, ge=0, description="events and progress stay in Redis so long after a job's end"
    )
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
