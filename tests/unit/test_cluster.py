"""What a cluster as it is now means for an index."""

from __future__ import annotations

import pytest

from jos.core.model import Gpu, Resources
from jos.driver.cluster import Cluster


@pytest.mark.parametrize(
    ("gpus", "gpu", "device"),
    [
        (0, Gpu(), "cpu"),
        (4, Gpu(), "cpu"),
        (4, Gpu(count=1), "cuda"),
        (0, Gpu(count=1), "cpu"),  # it falls back
        (0, Gpu(count=1, required=True), "cuda"),  # it waits for a node that has one, and never runs without
    ],
)
def test_a_gpu_is_used_where_there_is_one_and_asked_for_where_it_is_required(
    gpus: float, gpu: Gpu, device: str
) -> None:
    cluster = Cluster(own=False, cpus=8, gpus=gpus, nodes=1, largest_cpus=8)
    assert cluster.device(Resources(gpu=gpu)) == device
