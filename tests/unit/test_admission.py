"""Admission in tables: a few jobs, a few nodes, and who goes first."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from jos.core.admission import Admit, Grow, Holding, Node, Plan, Snapshot, Waiting, demand, plan
from jos.core.model import Gpu, Resources
from jos.core.queues import QueueConfig

NOW = datetime(2026, 1, 1, tzinfo=UTC)
COHORT = {"a": {"quota": {"cpu": 4}, "cohort": "main"}, "b": {"quota": {"cpu": 4}, "cohort": "main"}}


def waits(job_id: str, after: float = 0, cpu: float = 1, **fields: Any) -> Waiting:
    known = {"org_id": "org_a", "queue": "default", "priority": 0, "not_before": None, "parallelism": 1}
    resources = fields.pop("resources", Resources(cpu=cpu))
    return Waiting(id=job_id, queued_at=NOW + timedelta(seconds=after), resources=resources, **(known | fields))


def holds(job_id: str, cpu: float = 1, **fields: Any) -> Holding:
    known = {"org_id": "org_a", "queue": "default", "priority": 0, "parallelism": 1, "indexes": 1, "admitted_at": NOW}
    resources = fields.pop("resources", Resources(cpu=cpu))
    return Holding(id=job_id, resources=resources, **(known | fields))


def made(*jobs: Waiting | Holding, cpu: float | None = 4, promised: tuple[str, ...] = (), **config: Any) -> Plan:
    nodes = None if cpu is None else (Node({"cpu": cpu}),)
    waiting = tuple(job for job in jobs if isinstance(job, Waiting))
    holding = tuple(job for job in jobs if isinstance(job, Holding))
    return plan(Snapshot(QueueConfig.of(config), nodes, waiting, holding, frozenset(promised)), NOW)


def admitted(result: Plan) -> list[str]:
    return [admit.job_id for admit in result.admits]


def reasons(result: Plan) -> dict[str, str]:
    return {hold.job_id: str(hold.reason) for hold in result.holds}


def victims(result: Plan) -> list[str]:
    return [preempt.job_id for preempt in result.preempts]


# --- order --------------------------------------------------------------------------------------------


def test_higher_priority_goes_first_over_all_queues_then_time_then_id() -> None:
    jobs = waits("c", 2), waits("b", 1), waits("a", 1), waits("d", 3, priority=5, queue="other")
    assert admitted(made(*jobs, queues={"other": {}})) == ["d", "a", "b", "c"]


def test_the_organisation_that_has_least_goes_first_and_its_weight_counts() -> None:
    jobs = holds("h", 2), waits("a", 0), waits("b", 1, org_id="org_b"), waits("c", 2, org_id="org_b")
    assert admitted(made(*jobs)) == ["b", "c"]
    assert admitted(made(*jobs, organisations={"org_a": {"weight": 10}})) == ["b", "a"]


def test_a_smaller_job_passes_a_larger_one_but_not_in_a_strict_queue() -> None:
    jobs = holds("h", 2), waits("large", 0, cpu=3), waits("small", 1), waits("later", 2)
    assert admitted(made(*jobs)) == ["small", "later"]
    strict = made(*jobs, queues={"default": {"strategy": "strict_fifo"}})
    assert admitted(strict) == []
    assert reasons(strict) == {
        "large": "ClusterFull",
        "small": "BehindHeadOfQueue",
        "later": "BehindHeadOfQueue",
    }


def test_who_cannot_start_at_all_does_not_block_a_strict_queue() -> None:
    jobs = waits("never", 0, cpu=9), waits("backoff", 1, not_before=NOW + timedelta(seconds=1)), waits("job", 2)
    result = made(*jobs, queues={"default": {"strategy": "strict_fifo"}})
    assert admitted(result) == ["job"]
    assert reasons(result) == {"never": "NoNodeFits", "backoff": "WaitingForBackoff"}


def test_queues_within_their_quota_go_before_those_that_borrow() -> None:
    result = made(holds("h", 4, queue="a"), waits("a1", 0, 4, queue="a"), waits("b1", 1, 4, queue="b"), queues=COHORT,
                  cpu=8)  # fmt: skip
    assert admitted(result) == ["b1"]


# --- what is free -------------------------------------------------------------------------------------


def test_each_reason_is_given_with_words() -> None:
    jobs = [
        holds("h", 3), holds("o", 0.5, org_id="org_b"), waits("full", cpu=2), waits("never", cpu=5),
        waits("quota", queue="small", cpu=1), waits("limit", org_id="org_b", cpu=0.5), waits("stopped", queue="off"),
        waits("gone", queue="unknown"), waits("driver", holds_capacity=True), waits("too-much", queue="small", cpu=2),
        holds("s", 0.25, queue="small"),
    ]  # fmt: skip
    queues = {"small": {"quota": {"cpu": 1}}, "off": {"stopped": True}}
    result = made(*jobs, queues=queues, organisations={"org_b": {"max_running": 1}})
    assert reasons(result) == {
        "full": "ClusterFull", "never": "NoNodeFits", "quota": "QuotaExhausted", "limit": "OrganisationLimit",
        "stopped": "QueueStopped", "gone": "QueueStopped", "driver": "WaitingForDriver", "too-much": "ExceedsQuota",
    }  # fmt: skip
    (message,) = [hold.message for hold in result.holds if hold.job_id == "full"]
    assert message == "One index needs 2 CPUs; 0.25 CPUs of 4 CPUs is free in the cluster."


def test_a_queue_borrows_up_to_its_limit() -> None:
    jobs = [waits(f"a{i}", i, queue="a") for i in range(8)]
    assert len(made(*jobs, queues=COHORT, cpu=None).admits) == 8
    limited = COHORT | {"a": COHORT["a"] | {"borrowing_limit": {"cpu": 1}}}
    assert len(made(*jobs, queues=limited, cpu=None).admits) == 5


def test_a_job_that_asks_for_a_gpu_type_counts_for_both_and_any_type_for_one() -> None:
    typed, any_type = Gpu(count=1, type="H100"), Gpu(count=1)
    node = Node({"cpu": 8, "gpu": 2})
    assert demand(Resources(gpu=typed), [node]) == {"cpu": 1, "gpu": 1, "gpu:H100": 1}
    assert demand(Resources(gpu=any_type), [node]) == {"cpu": 1, "gpu": 1}
    assert demand(Resources(gpu=any_type), [Node({"cpu": 8})]) == {"cpu": 1}
    assert demand(Resources(gpu=any_type), None) == {"cpu": 1, "gpu": 1}
    assert demand(Resources(gpu=any_type), None, optional_gpus=False) == {"cpu": 1}
    assert demand(Resources(gpu=Gpu(count=1, required=True)), None, optional_gpus=False) == {"cpu": 1, "gpu": 1}
    assert demand(Resources(gpu=Gpu(count=1, required=True)), [Node({"cpu": 8})]) == {"cpu": 1, "gpu": 1}


def test_nodes_hold_whole_indexes() -> None:
    result = plan(
        Snapshot(QueueConfig(), (Node({"cpu": 8}),) * 2, tuple(waits(f"j{i}", i, cpu=3) for i in range(5)), ()), NOW
    )
    assert len(result.admits) == 4  # and not the 5 that the sum of 16 CPUs would hold


# --- growth -------------------------------------------------------------------------------------------


def test_everybody_of_a_priority_has_one_index_before_anybody_grows_and_growth_before_the_next_priority() -> None:
    jobs = waits("a", 0, priority=1, parallelism=9), waits("b", 1, priority=1, parallelism=2), waits("low", 2)
    assert made(*jobs).admits == [Admit("a", 3), Admit("b", 1)]


def test_organisations_grow_evenly() -> None:
    jobs = waits("a", 0, parallelism=9), waits("b", 1, parallelism=9, org_id="org_b")
    assert made(*jobs, cpu=8).admits == [Admit("a", 4), Admit("b", 4)]


def test_running_jobs_grow_into_what_is_free_but_not_those_that_leave() -> None:
    jobs = holds("h", parallelism=9), holds("gone", parallelism=9, leaving=True)
    assert made(*jobs).grows == [Grow("h", 3)]


# --- preemption ---------------------------------------------------------------------------------------


def test_the_lowest_priority_the_least_work_lost_and_the_latest_goes_first() -> None:
    jobs = [
        holds("dear", priority=0, work_lost=9), holds("old", priority=0, work_lost=1),
        holds("new", priority=0, work_lost=1, admitted_at=NOW + timedelta(seconds=1)), holds("high", priority=3),
    ]  # fmt: skip
    assert victims(made(*jobs, waits("job", priority=4))) == ["new"]
    assert victims(made(*jobs, waits("job", priority=4, cpu=3))) == ["new", "old", "dear"]


def test_who_is_told_to_leave_does_not_grow() -> None:
    low = holds("low", indexes=3, parallelism=8, priority=0)
    result = made(low, waits("high", cpu=2, priority=5))
    assert victims(result) == ["low"]
    assert result.grows == []


def test_victims_that_turn_out_not_to_be_needed_stay() -> None:
    jobs = holds("small", 1, priority=0), holds("large", 3, priority=1), waits("job", cpu=3, priority=2)
    result = made(*jobs)
    assert victims(result) == ["large"]
    assert reasons(result) == {"job": "WaitingForPreemption"}


def test_no_second_victim_is_taken_for_the_same_need_and_nobody_slips_in() -> None:
    jobs = [holds("gone", 2, leaving=True), holds("a", 1), waits("job", cpu=3, priority=1), waits("small", 1)]
    result = made(*jobs, promised=("job",))
    assert victims(result) == []
    assert admitted(result) == []
    assert reasons(result) == {"job": "WaitingForPreemption", "small": "ClusterFull"}


def test_equal_priority_exempt_jobs_and_queues_that_forbid_it_are_left_alone() -> None:
    newcomer = waits("job", cpu=4, priority=1)
    assert victims(made(holds("h", 4, priority=1), newcomer)) == []
    assert victims(made(holds("h", 4, preemption_count=5), newcomer)) == []
    never = {"default": {"preemption": {"within_queue": "never"}}}
    assert victims(made(holds("h", 4), newcomer, queues=never)) == []


def test_a_queue_takes_back_what_it_lent_by_its_policy() -> None:
    borrower, newcomer = holds("h", 1, queue="b", priority=7, indexes=8), waits("job", queue="a", cpu=2)
    for policy, expected in (("never", []), ("lower_priority", []), ("any", ["h"])):
        queues = COHORT | {"a": COHORT["a"] | {"preemption": {"reclaim": policy}}}
        assert victims(made(borrower, newcomer, queues=queues, cpu=8)) == expected
    assert victims(made(borrower, replace(newcomer, priority=8), queues=COHORT, cpu=8)) == ["h"]


def test_a_job_does_not_preempt_for_one_of_higher_priority_that_may_not() -> None:
    queues = {"never": {"preemption": {"within_queue": "never"}}}
    jobs = holds("h", 4), waits("high", cpu=4, priority=9, queue="never"), waits("job", cpu=1, priority=5)
    assert victims(made(*jobs, queues=queues)) == []


# --- loans --------------------------------------------------------------------------------------------

LENDER = {**COHORT, "a": {**COHORT["a"], "preemption": {"reclaim": "any"}}}


def test_nothing_is_lent_that_a_waiting_job_could_take_back_at_once() -> None:
    jobs = waits("large", cpu=6, queue="b", priority=1), waits("x", queue="a"), waits("y", 1, queue="a")
    first = made(*jobs, waits("z", 2, queue="a"), cpu=8, queues=LENDER)
    assert sorted(admitted(first)) == ["x", "y", "z"]
    assert reasons(first) == {"large": "ClaimedByOthers"}
    assert admitted(made(*jobs, cpu=8, queues=LENDER)) == ["large", "x", "y"]  # beside it there is room for both


def test_what_is_claimed_counts_over_all_priorities_of_the_lending_queue() -> None:
    jobs = waits("large", cpu=7, queue="b", priority=2), waits("x", queue="a", priority=1), waits("y", queue="a")
    assert admitted(made(*jobs, cpu=8, queues=LENDER)) == ["x", "y"]


def test_a_running_job_does_not_grow_into_what_would_be_taken_back() -> None:
    runs = holds("h", queue="b", priority=1, indexes=4, parallelism=8)
    grown = made(runs, waits("x", queue="a"), cpu=8, queues=LENDER)
    assert admitted(grown) == ["x"]
    assert grown.grows == [Grow("h", 7)]


def test_a_lender_that_may_not_reclaim_from_a_higher_priority_waits() -> None:
    jobs = waits("large", cpu=8, queue="b", priority=1), waits("x", queue="a")
    found = made(*jobs, cpu=8, queues=COHORT)
    assert admitted(found) == ["large"]
    assert reasons(found) == {"x": "QuotaExhausted"}


def test_who_cannot_be_preempted_any_more_is_lent_what_is_there() -> None:
    """Or a job that needs more than its queue's quota would never run while the lending queue is busy."""
    jobs = waits("large", cpu=8, queue="b", priority=1, preemption_count=5), waits("x", queue="a")
    assert admitted(made(*jobs, cpu=8, queues=LENDER)) == ["large"]


def test_one_that_has_room_beside_those_that_leave_starts_at_once() -> None:
    queues = {"default": {"quota": {"cpu": 4}}}
    jobs = holds("h1"), holds("h2"), waits("large", cpu=3, priority=2), waits("small", priority=1)
    found = made(*jobs, queues=queues)
    assert len(victims(found)) == 2
    assert admitted(found) == ["small"]
    assert found.promised == {"large"}
