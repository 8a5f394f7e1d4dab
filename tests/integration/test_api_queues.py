"""What queues may use and do use, over HTTP."""

from __future__ import annotations

from api_lab import Api

from jos.api.queues import used
from jos.core.model import Gpu, Resources
from jos.core.queues import QueueConfig

CONFIG = QueueConfig.of(
    {
        "queues": {
            "default": {"quota": {"cpu": 4, "memory": 8e9}, "cohort": "main"},
            "night": {"cohort": "main", "stopped": True},
        }
    }
)


def test_each_queue_says_its_quota_and_what_all_organisations_use_of_it(api: Api) -> None:
    api.service.queues = CONFIG
    words = api.upload("words.jsonl")
    running, leaving, _waiting = (
        api.create(words, parameters={"worker": {"parallelism": n, "config": {}}}) for n in (2, 1, 1)
    )
    api.admit(running)
    api.admit(leaving)
    api.cancel(leaving)  # its driver has not left: what it was granted is not free
    other = api.as_(api.make_key("org_b", "reader"))
    answer = other.get("/v0.5/batch/queues").json()
    default, night = answer.pop("queues")
    assert answer == {"total": 2, "offset": 0, "limit": 20}
    assert default == {
        "name": "default", "quota": {"cpu": 4, "memory": 8e9}, "used": {"cpu": 3}, "running": 2, "waiting": 1,
        "cohort": "main", "stopped": False,
    }  # fmt: skip
    assert night == {
        "name": "night", "quota": {}, "used": {}, "running": 0, "waiting": 0, "cohort": "main", "stopped": True,
    }  # fmt: skip
    api.drained(leaving)
    [default] = api.get("/batch/queues", limit=1)["queues"]
    assert (default["used"], default["running"]) == ({"cpu": 2}, 1)
    assert api.as_(None).get("/v0.5/batch/queues").status_code == 401
    # a GPU that a job can do without is charged where there are some
    job = api.with_store(lambda store: store.get(running))
    job = job.model_copy(update={"resources": Resources(cpu=1, gpu=Gpu(count=1, required=False))})
    assert used([job], CONFIG) == {"default": (1, {"cpu": 2})}
    gpus = QueueConfig.of({"nodes": [{"resources": {"cpu": 8, "gpu": 2}}]})
    assert used([job], gpus) == {"default": (1, {"cpu": 2, "gpu": 2})}
    assert used([job], QueueConfig.of({"queues": {"default": {"quota": {"gpu": 2}}}}))["default"][1]["gpu"] == 2
