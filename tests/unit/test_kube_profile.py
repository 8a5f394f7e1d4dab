"""The profile of a cluster as an operator writes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from jos.core.errors import ConfigInvalid
from jos.launch.kube_profile import RAY_VERSION, KubeProfile, Section, profile_of, read_profile
from jos.launch.quantities import amount, in_bytes, of_bytes, of_cpus

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kubernetes-profile.md").read_text()


def violations(text: str) -> list[str]:
    with pytest.raises(ConfigInvalid) as caught:
        profile_of(yaml.safe_load(text), "kube.yaml")
    return [f"{v.path}: {v.message}" for v in caught.value.violations]


# --- what is right ---


def test_an_empty_file_is_a_profile_and_so_is_none(tmp_path: Path) -> None:
    (tmp_path / "kube.yaml").write_text("# nothing yet\n")
    assert read_profile(tmp_path / "kube.yaml") == read_profile(None) == KubeProfile()


def test_a_section_with_nothing_behind_it_is_as_if_it_were_not_there() -> None:
    assert profile_of({"head": None, "workers": {"memory": None}, "spot": None}, "x") == KubeProfile()


def test_numbers_are_as_good_as_texts_where_amounts_are_meant() -> None:
    profile = profile_of({"head": {"cpu": 2, "memory": 4_000_000_000}, "autoscaler": {"cpu": 0.5}}, "x")
    assert (profile.head.cpu, profile.head.memory, profile.autoscaler.cpu) == ("2", "4000000000", "0.5")


def test_workers_are_elastic_but_with_kueue() -> None:
    assert KubeProfile().elastic
    assert not profile_of({"admission": "kueue"}, "x").elastic
    assert not profile_of({"workers": {"mode": "fixed"}}, "x").elastic


def test_ray_is_the_one_that_images_are_built_with() -> None:
    assert f"ray=={RAY_VERSION}\n" in (ROOT / "constraints.txt").read_text()


# --- what is wrong ---


def test_all_mistakes_are_told_at_once_with_the_file_and_what_was_meant() -> None:
    text = "namspace: jos\nworkers: {memry: 1Gi}\ngpus: {H100: {resorce: x}}\nspot: {taints: []}\nhead: {cpu: lots}"
    with pytest.raises(ConfigInvalid, match=r"The Kubernetes profile kube\.yaml is not valid\. .*docs/kubernetes"):
        profile_of(yaml.safe_load(text), "kube.yaml")
    told = violations(text)
    assert '$.namspace: is no field of a profile. Did you mean "namespace"?' in told
    assert '$.workers.memry: is no field of a profile. Did you mean "memory"?' in told
    assert '$.gpus.H100.resorce: is no field of a profile. Did you mean "resource"?' in told
    assert "$.spot.taints: is no field of a profile. Known: node_selector, tolerations." in told
    assert any(one.startswith("$.head.cpu: 'lots' is no quantity") for one in told)
    assert len(told) == 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("env: {AWS_SECRET_ACCESS_KEY: abc}", "$.env.AWS_SECRET_ACCESS_KEY: looks like a secret"),
        ("env: {JOS_REDIS_URL: 'redis://:pw@redis:6379'}", "$.env.JOS_REDIS_URL: looks like a secret"),
        ("env: {HF_TOKEN: hf_x}", "$.env.HF_TOKEN: looks like a secret"),
        ("env: {RAY_ADDRESS: 'x:6379'}", "$.env.RAY_ADDRESS: is set by KubeRay"),
        ("secret_env: {JOS_RAY_ADDRESS: {secret: a, key: b}}", "$.env.JOS_RAY_ADDRESS: is set by KubeRay"),
        ("env: {A: x}\nsecret_env: {A: {secret: a, key: b}}", "$.env.A: stands in secret_env as well"),
        ("env: {JOS_STREAM_HOURS: 24}", "$.env.JOS_STREAM_HOURS: Input should be a valid string: put quotes around 24"),
        ("env: {a-b: x}", "is not a variable's name"),
        ("env_from: [{}]", "$.env_from[0]: name either a `secret` or a `config_map`"),
        ("env_from: [{secret: a, config_map: b}]", "$.env_from[0]: name either a `secret` or a `config_map`"),
        ("labels: {jos.dev/job: x}", '$.labels["jos.dev/job"]: is JOS\'s own'),
        ("annotations: {kueue.x-k8s.io/queue-name: x}", "is JOS's own"),
        ("labels: {team: 'a b'}", "is not a label's value"),
        ("namespace: JOS", "$.namespace: 'JOS' is not a name of Kubernetes"),
        ("image: 'Registry/x y'", "$.image: 'Registry/x y' is not an image"),
        ("image: 'x@sha256:123'", "is not an image"),
        ("head: {memory: 0}", "$.head.memory: must be more than 0"),
        ("head: {memory: 512Mi}", "$.head.memory: must be more than shared_memory"),
        ("workers: {shared_memory: 4Gi}", "$.workers.memory_overhead: must be more than shared_memory"),
        ("admission: kueue\nworkers: {mode: elastic}", "$.workers.mode: Kueue admits a job as a whole"),
        (
            "kueue: {priority_classes: [{at_least: 0, name: a}, {at_least: 0, name: b}]}",
            "$.kueue.priority_classes: two bands have the same at_least",
        ),
        ("pre_running_deadline_seconds: 0", "$.pre_running_deadline_seconds: Input should be greater than or equal"),
        ("[a, list]", "$: Input should be a valid dictionary"),
    ],
)
def test_a_mistake_is_told_with_its_field(text: str, told: str) -> None:
    assert any(told in one for one in violations(text)), violations(text)


def test_what_only_names_the_place_of_a_secret_is_none() -> None:
    env = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/var/token", "AWS_ACCESS_KEY_ID": "AKIA", "JOS_REDIS_URL": "redis://redis"}
    assert profile_of({"env": env}, "x").env == env


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"nowhere\.yaml cannot be read: No such file"):
        read_profile(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigInvalid, match=r"broken\.yaml cannot be read"):
        read_profile(tmp_path / "broken.yaml")


# --- amounts ---


def test_amounts_are_read_and_written_as_kubernetes_has_them() -> None:
    assert [str(amount(q)) for q in ("500m", "2", "0.5")] == ["0.500", "2", "0.5"]
    assert [in_bytes(q) for q in ("1Ki", "2Gi", "1G", "1.5Mi")] == [1024, 2 << 30, 10**9, 3 << 19]
    assert [of_bytes(n) for n in (2 << 30, 3 << 19, 1000)] == ["2Gi", "1536Ki", "1000"]
    assert [of_cpus(n) for n in (1, 0.5, 0.3 * 3, 2.0, 0.0001)] == ["1", "500m", "900m", "2", "1m"]


# --- for people ---


def fields(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field with its place; those of what stands in a map under NAME."""
    for name, field in section.model_fields.items():
        yield f"{path}{name}", field
        kind = field.annotation
        inside = get_args(kind) if get_origin(kind) in (dict, UnionType) else [kind]
        for one in inside:
            if (
                isinstance(one, type)
                and issubclass(one, Section)
                and all(f.description for f in one.model_fields.values())
            ):
                yield from fields(one, f"{path}{name}." + ("NAME." if get_origin(kind) is dict else ""))


def row(path: str, field: Any) -> str:
    default = field.get_default()
    plain = isinstance(default, str | int)
    shown = f"`{str(default).lower() if isinstance(default, bool) else default}`" if plain else ""
    return f"| `{path}` | {shown} | {field.description} |"


def test_every_field_is_in_the_documentation_in_its_own_words() -> None:
    rows = [row(path, field) for path, field in fields(KubeProfile)]
    assert len(rows) > 50
    missing = [one for one in rows if one not in PAGE]
    assert not missing, "\n".join(rows)
    known = {path for path, _ in fields(KubeProfile)}
    assert [one for one in re.findall(r"^\| `([\w.]+)` \|", PAGE, re.MULTILINE) if one not in known] == []


def test_the_example_in_the_documentation_is_valid() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    profile = profile_of(yaml.safe_load(example), "the example")
    assert profile.admission == "kueue"
    assert profile.gpus.keys() == {"H100"}
