"""Heads that seem to be dead are looked at again together, and what that finds counts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jos.core.errors import ComputeFailed
from jos.launch.kube_api import POD, RAYJOB, Kind
from jos.launch.kube_cache import RAYJOBS, slim
from jos.launch.kube_doubt import MOST, Doubts
from jos.launch.rayjob_truth import Evidence

DEATH = "its head was deleted"


def rayjob(number: int, uid: str = "u", cluster: str = "c", status: str = "Running") -> Mapping[str, Any]:
    metadata = {"name": f"r{number}", "uid": uid, "labels": {"jos.dev/job": f"job_{number}"}}
    told = {"jobDeploymentStatus": status, "rayClusterName": cluster}
    return slim(RAYJOBS, {"metadata": metadata, "spec": {"jobId": f"jos-job_{number}-1"}, "status": told})


def head(number: int, cluster: str = "c") -> dict[str, Any]:
    mine = {"jos.dev/job": f"job_{number}", "ray.io/cluster": cluster, "ray.io/node-type": "head"}
    return {"metadata": {"name": f"h{number}", "labels": mine}}


class Api:
    """A cluster that is only listed."""

    def __init__(self, *things: Mapping[str, Any]) -> None:
        self.things = things
        self.asked: list[tuple[Kind, int]] = []  # and for how many jobs
        self.away = False

    async def list(self, kind: Kind, selector: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], str]:
        await asyncio.sleep(0)
        assert selector["mine"] == "yes"
        self.asked.append((kind, len(selector["jos.dev/job"])))
        if self.away:
            raise ComputeFailed("It is away.")
        found = [thing for thing in self.things if ("jobId" in thing.get("spec", {})) == (kind is RAYJOB)]
        return [t for t in found if t["metadata"]["labels"]["jos.dev/job"] in selector["jos.dev/job"]], "1"


async def looked_at(api: Api, *known: Evidence) -> tuple[Doubts, list[Evidence | None]]:
    told: list[str] = []
    doubts = Doubts(api, {"mine": "yes"}, told.append)  # type: ignore[arg-type]
    assert [doubts.looked_again(one, DEATH) for one in known] == [None] * len(known)
    assert doubts._looking is not None
    await doubts._looking
    assert told == ([] if api.away else [one.rayjob["metadata"]["name"] for one in known])
    return doubts, [doubts.looked_again(one, DEATH) for one in known]


def test_all_that_are_doubted_at_once_cost_two_calls_for_a_hundred_of_them() -> None:
    known = [Evidence(rayjob(number)) for number in range(2 * MOST + 1)]
    api = Api(*(one.rayjob for one in known))
    doubts, found = asyncio.run(looked_at(api, *known))
    assert found == known
    assert api.asked == [(POD, MOST), (RAYJOB, MOST), (POD, MOST), (RAYJOB, MOST), (POD, 1), (RAYJOB, 1)]
    assert len(doubts._wanted) == 0


def test_a_rayjob_and_pods_count_as_they_were_found() -> None:
    known = Evidence(rayjob(1), pods=[head(1)], dead_head=head(1))
    api = Api(rayjob(1, status="Complete"), head(1), head(1, "another"), head(2))
    _, [found] = asyncio.run(looked_at(api, known))
    assert found is not None
    assert found.rayjob["status"]["jobDeploymentStatus"] == "Complete"
    assert [pod["metadata"]["labels"]["ray.io/cluster"] for pod in found.pods] == ["c"]
    assert found.dead_head == known.dead_head


def test_a_death_in_an_earlier_cluster_is_none_in_the_present_one() -> None:
    known = Evidence(rayjob(1), cluster={"metadata": {"name": "c"}}, dead_head=head(1))
    _, [found] = asyncio.run(looked_at(Api(rayjob(1, cluster="next"), head(1, "next")), known))
    assert found is not None
    assert (found.dead_head, found.cluster, len(found.pods)) == (None, None, 1)


def test_a_rayjob_that_is_no_more_or_was_made_again_did_not_come_to_life() -> None:
    known = Evidence(rayjob(1), dead_head=head(1))
    for api in (Api(), Api(rayjob(1, uid="another", cluster="next"))):
        assert asyncio.run(looked_at(api, known))[1] == [replace(known, pods=())]


def test_another_death_is_looked_into_anew_and_a_doubt_that_is_settled_is_forgotten() -> None:
    async def work() -> None:
        api, known = Api(rayjob(1)), Evidence(rayjob(1))
        doubts, [found] = await looked_at(api, known)
        assert (found, "r1" in doubts) == (known, True)
        assert doubts.looked_again(known, "its head was evicted") is None
        doubts.settle("r1")
        assert "r1" not in doubts
        assert doubts.looked_again(known, DEATH) is None
        assert doubts._looking is not None
        await doubts._looking
        assert doubts.looked_again(known, DEATH) == known

    asyncio.run(work())


def test_what_could_not_be_looked_at_is_asked_for_again() -> None:
    async def work() -> None:
        api, known = Api(rayjob(1)), Evidence(rayjob(1))
        api.away = True
        doubts, [found] = await looked_at(api, known)
        assert found is None
        api.away = False
        assert doubts._looking is not None
        await doubts._looking
        assert doubts.looked_again(known, DEATH) == known

    asyncio.run(work())
