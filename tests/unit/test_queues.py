"""The configuration of queues as an operator writes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from jos.core.errors import ConfigInvalid
from jos.core.queues import QueueConfig
from jos.core.snapshot import Node, capacity

PAGE = Path(__file__).parents[2] / "docs" / "queues.md"


def violations(text: str) -> list[str]:
    with pytest.raises(ConfigInvalid) as caught:
        QueueConfig.of(yaml.safe_load(text))
    return [f"{v.path}: {v.message}" for v in caught.value.violations]


@pytest.mark.parametrize("data", [None, {}, {"queues": None}], ids=["no file", "an empty file", "an empty section"])
def test_without_configuration_there_is_one_queue_without_a_quota(data: object) -> None:
    config = QueueConfig.of(data)
    assert list(config.queues) == ["default"]
    assert config.queues["default"].quota == {}
    assert config.organisation("org_a").max_running is None


def test_the_example_in_the_documentation_is_valid() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    config = QueueConfig.of(yaml.safe_load(example))
    assert config.queues["research"].quota["memory"] == 256e9  # YAML reads 256e9 as text
    assert set(config.queues) >= {"default", "research", "production"}


def test_configured_nodes_are_what_plans_count_with_and_else_those_that_live() -> None:
    living = (Node({"cpu": 4.0}),)
    assert capacity(QueueConfig.of(None), living) == living
    assert capacity(QueueConfig.of(None), None) is None
    config = QueueConfig.of({"nodes": [{"count": 2, "resources": {"cpu": 8}}, {"resources": {"cpu": 2, "gpu": 1}}]})
    expected = (Node({"cpu": 8.0}), Node({"cpu": 8.0}), Node({"cpu": 2.0, "gpu": 1.0}))
    assert capacity(config, living) == capacity(config, None) == expected


def test_a_route_wins_over_the_pipelines_queue_and_an_unknown_queue_is_the_default() -> None:
    config = QueueConfig.of({"queues": {"fast": {}, "slow": {}}, "routes": {"classify": "fast"}})
    assert config.queue_of("classify", "slow") == "fast"
    assert config.queue_of("embed", "slow") == "slow"
    assert config.queue_of("embed", "gone") == "default"


def test_an_organisation_takes_what_it_leaves_out_from_the_default() -> None:
    organisations = {"default": {"max_running": 4, "weight": 2}, "org_a": {"max_running": 9}}
    config = QueueConfig.of({"organisations": organisations})
    assert (config.organisation("org_a").max_running, config.organisation("org_a").weight) == (9, 2)
    assert config.organisation("org_b").max_running == 4
    assert config.organisation("org_b").max_pending == 10_000


def test_ceilings_differ_by_role() -> None:
    config = QueueConfig.of({"priority_ceiling": {"user": 7}})
    assert (config.ceiling("user"), config.ceiling("admin")) == (7, 1000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("queues: {a: {quota: {gpus: 1}}}", "$.queues.a.quota: 'gpus' is no resource: use cpu, memory, gpu or"),
        ("queues: {a: {quota: {cpu: -1}}}", "$.queues.a.quota: cpu: must be a number that is not negative"),
        ("queues: {a: {borrowing_limit: {cpu: 1}}}", "$.queues.a: borrowing_limit means nothing without a cohort"),
        ("queues: {a: {weight: 2}}", "$.queues.a: weight means nothing without a cohort"),
        (
            "queues: {a: {cohort: c, quota: {cpu: 1}, borrowing_limit: {gpu: 1}}}",
            "$.queues.a: borrowing_limit.gpu means nothing without a quota of gpu",
        ),
        ("nodes: [{resources: {gpus: 1}}]", "$.nodes.0.resources: 'gpus' is no resource"),
        ("nodes: [{resources: {'gpu:H100': 8}}]", "$.nodes.0.resources: gpu:H100: a GPU of a type counts for gpu as"),
        ("nodes: [{count: -1, resources: {cpu: 1}}]", "$.nodes.0.count: Input should be greater than or equal to 0"),
        ("nodes: [{count: 2}]", "$.nodes.0.resources: Field required"),
        ("queues: {a: {weight: 0}}", "$.queues.a.weight: Input should be greater than 0"),
        ("queues: {a: {strategy: lifo}}", "$.queues.a.strategy: Input should be 'best_effort' or 'strict_fifo'"),
        ("routes: {classify: gone}", "$: routes.classify: there is no queue 'gone'"),
        ("quues: {}", "$.quues: Extra inputs are not permitted"),
        ("just words", "$: Input should be a valid dictionary"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, message: str) -> None:
    assert violations(text)[0].startswith(message)


def test_all_mistakes_are_named_at_once() -> None:
    assert len(violations("{queues: {a: {weight: 0}, b: {weight: -1}}, max_preemptions_before_exempt: -1}")) == 3
