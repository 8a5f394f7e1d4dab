"""What a cluster's operator chooses about the pods of jobs: a YAML file, named by JOS_KUBE or `jos render --profile`.

Everything has a default, so that an empty file works. Mistakes are told all at once, with file, field and what to do.
May import: stdlib, pydantic, yaml, jos.core, jos.launch.quantities. Tests: tests/unit/test_kube_profile.py.
For people: docs/kubernetes-profile.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from jos import __version__
from jos.core.errors import ConfigInvalid, Violation
from jos.core.schema import did_you_mean, json_path
from jos.launch.quantities import amount

PAGE = "docs/kubernetes-profile.md"
RAY_VERSION = "2.60.0"  # of constraints.txt, which the images are built with

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DOTTED = re.compile(rf"{_NAME.pattern}(\.{_NAME.pattern})*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY = re.compile(rf"({_DOTTED.pattern}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_IMAGE = re.compile(r"[a-z0-9][-a-zA-Z0-9._:/]*(@sha256:[0-9a-f]{64})?")
_SECRET = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|PRIVATE_KEY|API_KEY|ACCESS_KEY(?!_ID)|CREDENTIALS")
_NO_SECRET = ("_FILE", "_PATH", "_CREDENTIALS", "_URI")  # such a variable names the place of one
_PASSWORD_IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]+@")
# where drivers and Ray's processes find each other: KubeRay's to say
_KUBERAYS = {"RAY_ADDRESS", "RAY_IP", "RAY_PORT", "RAY_CLUSTER_NAME", "RAY_REDIS_ADDRESS", "REDIS_USERNAME"}
_KUBERAYS |= {"RAY_enable_autoscaler_v2", "JOS_RAY_ADDRESS"}
_OURS = ("jos.dev/", "ray.io/", "kueue.x-k8s.io/", "app.kubernetes.io/managed-by")


def _matching(pattern: re.Pattern[str], what: str, longest: int = 253) -> AfterValidator:
    def check(text: str) -> str:
        if len(text) > longest or not pattern.fullmatch(text):
            raise ValueError(f"{text!r} is not {what}")
        return text

    return AfterValidator(check)


def _quantity(text: str) -> str:
    if amount(text) <= 0:
        raise ValueError("must be more than 0")
    return text


def _written(value: object) -> object:
    """`cpu: 2` is as good as `cpu: "2"`."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Quantity = Annotated[str, BeforeValidator(_written), AfterValidator(_quantity)]
Name = Annotated[str, _matching(_NAME, "a name of Kubernetes: use a-z, 0-9 and -, at most 63 characters")]
Dotted = Annotated[str, _matching(_DOTTED, "a name of Kubernetes: use a-z, 0-9, - and .")]
ShortDotted = Annotated[str, _matching(_DOTTED, "a name that a label can hold: at most 63 of a-z, 0-9, - and .", 63)]
Variable = Annotated[str, _matching(_VARIABLE, "a variable's name")]
Key = Annotated[str, _matching(_KEY, "a key of Kubernetes, such as example.com/team")]
LabelValue = Annotated[str, _matching(_VALUE, "a label's value: letters, digits, -, _ and ., at most 63 characters")]
Image = Annotated[str, _matching(_IMAGE, "an image, such as registry.example/jos/worker@sha256:…", 500)]
Labels = dict[Key, LabelValue]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_the_default(cls, data: object) -> object:
        """`head:` with nothing behind it."""
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, Mapping) else data


class Toleration(Section):
    """As Kubernetes has it."""

    key: Key | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    tolerationSeconds: int | None = None


class SecretKey(Section):
    secret: Dotted
    key: str = Field(min_length=1)


class EnvFrom(Section):
    """All variables of one object."""

    secret: Dotted | None = None
    config_map: Dotted | None = None
    optional: bool = False

    @model_validator(mode="after")
    def _one(self) -> EnvFrom:
        if (self.secret is None) == (self.config_map is None):
            raise ValueError("name either a `secret` or a `config_map`")
        return self


class Nodes(Section):
    """Which nodes pods may stand on."""

    node_selector: Labels = Field(default={}, description="labels that a node must have")
    tolerations: list[Toleration] = Field(default=[], description="taints of nodes that are no hindrance")


class Head(Nodes):
    cpu: Quantity = Field(default="1", description="CPUs of the head: Ray's own processes and the job's driver")
    memory: Quantity = Field(default="3Gi", description="its memory")
    shared_memory: Quantity = Field(default="512Mi", description="size of its /dev/shm, a part of its memory")
    ephemeral_storage: Quantity = Field(default="5Gi", description="its disk, for Ray's logs")


class Workers(Nodes):
    mode: Literal["elastic", "fixed"] | None = Field(
        default=None,
        description="elastic: pods come and go with the indexes that JOS grants, by Ray's autoscaler; fixed: all stand "
        "from the start to the end; default: elastic, and with Kueue, which admits a job as a whole, fixed",
    )
    memory: Quantity = Field(default="2Gi", description="memory of an index whose pipeline names none")
    memory_overhead: Quantity = Field(
        default="1Gi", description="a pod's memory above that of its indexes: Ray's processes and the shared memory"
    )
    shared_memory: Quantity = Field(default="512Mi", description="size of /dev/shm, a part of the overhead")
    ephemeral_storage: Quantity = Field(default="10Gi", description="a pod's disk: /tmp and logs")
    spread_over: Key | None = Field(
        default=None, description="a label of nodes, such as topology.kubernetes.io/zone, that pods are spread over"
    )


class GpuNodes(Nodes):
    tolerations: list[Toleration] = Field(
        default=[Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")],
        description="taints of nodes that are no hindrance; default: nvidia.com/gpu, which GPU nodes usually have",
    )
    resource: Key = Field(default="nvidia.com/gpu", description="what the device plugin calls one GPU")
    runtime_class: Dotted | None = Field(default=None, description="the RuntimeClass that GPU pods need, if any")


class Autoscaler(Section):
    idle_timeout_seconds: int = Field(default=60, ge=1, description="a worker pod that is idle for longer goes")
    cpu: Quantity = Field(default="500m", description="CPUs of the autoscaler beside each elastic head")
    memory: Quantity = Field(default="512Mi", description="its memory")
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] = Field(
        default="Default", description="how fast pods are added, in Ray's words"
    )


class PriorityBand(Section):
    at_least: int = Field(description="jobs of this priority and higher, up to the next band")
    name: ShortDotted = Field(description="the WorkloadPriorityClass they have")


class Kueue(Section):
    local_queues: dict[str, Name] = Field(
        default={}, description="the LocalQueue of each JOS queue; one that is not named is called the same"
    )
    priority_classes: list[PriorityBand] = Field(
        default=[], description="`{at_least: 100, name: high}`, …: the WorkloadPriorityClass by a job's priority"
    )


class KubeProfile(Section):
    namespace: Name = Field(default="jos", description="where RayJobs and their pods are")
    service_account: Dotted | None = Field(
        default=None, description="of jobs' pods, for access to a cloud's storage; only Ray's autoscaler gets its token"
    )
    image: Image = Field(
        default=f"jos:{__version__}", description="head and workers of pipelines that name no image of their own"
    )
    images: dict[str, Image] = Field(
        default={}, description="a pipeline's key, or the image that pipelines name, → the image to use instead"
    )
    image_pull_secrets: list[Dotted] = Field(default=[], description="names of the Secrets that open a registry")
    ray_version: str = Field(default=RAY_VERSION, description="Ray in the images", pattern=r"^\d+\.\d+\.\d+$")
    env: dict[Variable, str] = Field(default={}, description="variables of all pods that hold no secret")
    secret_env: dict[Variable, SecretKey] = Field(
        default={}, description="variables from Secrets: `JOS_REDIS_URL: {secret: jos, key: redis-url}`"
    )
    env_from: list[EnvFrom] = Field(
        default=[], description="all variables of a `{secret: NAME}` or `{config_map: NAME}`, in this order"
    )
    user: int = Field(default=10001, ge=1, description="the user, and the group, that every container runs as")
    read_only_root: bool = Field(
        default=True, description="nothing but /tmp and /dev/shm can be written; false for images that cannot do so"
    )
    head: Head = Field(default=Head(), description="the pod of Ray's head and the driver; no index runs there")
    workers: Workers = Field(default=Workers(), description="the pods of indexes")
    gpus: dict[str, GpuNodes] = Field(
        default={}, description="nodes of each GPU type, by Ray's name of it, such as H100"
    )
    any_gpu: GpuNodes = Field(default=GpuNodes(), description="nodes for pipelines that need a GPU of any type")
    optional_gpus: bool = Field(
        default=False, description="true: a GPU that a pipeline can do without is asked for as well"
    )
    spot: Nodes | None = Field(
        default=None, description="nodes that may go at any time: workers go there, and heads do not"
    )
    autoscaler: Autoscaler = Field(default=Autoscaler(), description="Ray's autoscaler, where workers are elastic")
    pod_priority_class: Dotted | None = Field(default=None, description="the PriorityClass of jobs' pods")
    pre_running_deadline_seconds: int = Field(
        default=1800, ge=1, description="an attempt whose pods are not up by then fails"
    )
    ttl_seconds_after_finished: int = Field(
        default=0, ge=0, description="so long pods stay after an attempt's end, and hold what they have"
    )
    kept_seconds: int = Field(
        default=300, ge=0, description="so long a RayJob stays after its end, for people who look with kubectl"
    )
    admission: Literal["jos", "kueue"] = Field(
        default="jos", description="who says when a job may start: JOS by JOS_QUEUES, or Kueue"
    )
    kueue: Kueue = Field(default=Kueue(), description="with `admission: kueue`: which of its queues and classes")
    labels: Labels = Field(default={}, description="more labels of RayJobs and pods")
    annotations: dict[Key, str] = Field(default={}, description="more annotations of RayJobs and pods")

    @property
    def elastic(self) -> bool:
        return (self.workers.mode or ("fixed" if self.admission == "kueue" else "elastic")) == "elastic"

    @model_validator(mode="after")
    def _sound(self) -> KubeProfile:
        """Raises ValueError with all that single fields cannot tell; each line begins with its path."""
        wrong = [*self._wrong_variables(), *self._wrong_keys()]
        if self.admission == "kueue" and self.workers.mode == "elastic":
            wrong.append("$.workers.mode: Kueue admits a job as a whole: leave it out, or write fixed")
        bands = [band.at_least for band in self.kueue.priority_classes]
        if len(set(bands)) != len(bands):
            wrong.append("$.kueue.priority_classes: two bands have the same at_least")
        for path, whole, part in (
            ("$.workers.memory_overhead", self.workers.memory_overhead, self.workers.shared_memory),
            ("$.head.memory", self.head.memory, self.head.shared_memory),
        ):
            if amount(part) >= amount(whole):
                wrong.append(f"{path}: must be more than shared_memory, which is a part of it")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def _wrong_variables(self) -> Iterator[str]:
        for name, value in self.env.items():
            secret = _SECRET.search(name) and not name.endswith(_NO_SECRET)
            if secret or _PASSWORD_IN_URL.search(value):
                yield f"{json_path(['env', name])}: looks like a secret, which can be seen here: use secret_env"
        for name in sorted(_KUBERAYS & {*self.env, *self.secret_env}):
            yield f"{json_path(['env', name])}: is set by KubeRay: leave it out"
        for name in sorted(self.env.keys() & self.secret_env.keys()):
            yield f"{json_path(['env', name])}: stands in secret_env as well"

    def _wrong_keys(self) -> Iterator[str]:
        for field, found in (("labels", self.labels), ("annotations", self.annotations)):
            for key in found:
                if key.startswith(_OURS):
                    yield f"{json_path([field, key])}: is JOS's own: use a prefix of yours"


def read_profile(path: Path | None) -> KubeProfile:
    """The profile in a file; without one, the defaults. Raises ConfigInvalid with every mistake."""
    if path is None:
        return KubeProfile()
    try:
        data = yaml.safe_load(path.expanduser().read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise ConfigInvalid(f"The Kubernetes profile {path} cannot be read: {said}.", [], suggestion=_HELP) from error
    return profile_of(data, str(path))


def profile_of(data: object, name: str) -> KubeProfile:
    """From parsed YAML (None: an empty file) that came from `name`."""
    try:
        return KubeProfile.model_validate({} if data is None else data)
    except ValidationError as error:
        violations = [v for e in error.errors() for v in _violations(e)]
        raise ConfigInvalid(f"The Kubernetes profile {name} is not valid.", violations, suggestion=_HELP) from None


_HELP = f"{PAGE} lists all fields, with an example."


def _violations(error: Any) -> Iterator[Violation]:
    parts = tuple(part for part in error["loc"] if part != "[key]")
    path, message = json_path(parts), error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        near = did_you_mean(str(parts[-1]), _fields(parts[:-1]))
        yield Violation(path, f"is no field of a profile.{near}", "unknown")
    elif message.startswith("$."):
        for line in message.splitlines():
            where, _, what = line.partition(": ")
            yield Violation(where, what)
    elif error["type"] == "string_type":
        yield Violation(path, f"{message}: put quotes around {error['input']!r}")
    else:
        yield Violation(path, message)


def _fields(parts: tuple[str | int, ...]) -> list[str]:
    """The fields of the section at this place."""
    at: Any = KubeProfile
    for part in parts:
        at = at.model_fields[part].annotation if isinstance(part, str) and _is_section(at) else get_args(at)[-1]
        if get_origin(at) is UnionType:
            at = next(kind for kind in get_args(at) if _is_section(kind))
    return list(at.model_fields)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
