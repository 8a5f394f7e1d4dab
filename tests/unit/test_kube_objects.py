"""The rules that the fake cluster's store keeps (tests/lab/kube/objects.py), where clients cannot see them all."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kube.errors import ApiError
from kube.fields import Shape, fields_v1, leaves, merged, parse_v1, without
from kube.objects import Objects, Review
from kube.patches import json_patch, merge
from kube.shelf import Change

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def objects() -> Objects:
    return Objects(Clock(), namespaces=("jos",))


def config(name: str = "c", *owners: dict[str, Any], **meta: Any) -> dict[str, Any]:
    references = [
        {"apiVersion": "v1", "kind": o["kind"], "name": o["metadata"]["name"], "uid": o["metadata"]["uid"]}
        | {"blockOwnerDeletion": True}
        for o in owners
    ]
    extra = {"ownerReferences": references} if references else {}
    return {"metadata": {"name": name, "namespace": "jos"} | extra | meta}


def pod(name: str = "p", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "jos"}, "spec": {"containers": [{"name": "c"}]} | spec}


def refused(error: pytest.ExceptionInfo[ApiError]) -> tuple[int, str]:
    return error.value.status, error.value.reason


def test_one_counter_counts_all_changes_and_no_write_without_change(objects: Objects) -> None:
    first = objects.create("configmaps", config("a"))
    second = objects.create("pods", pod())
    assert int(second["metadata"]["resourceVersion"]) == int(first["metadata"]["resourceVersion"]) + 1
    assert objects.patch("configmaps", "jos", "a", {"metadata": {"labels": None}}) == first
    assert objects.version == int(second["metadata"]["resourceVersion"])


def test_names_are_made_up_and_taken_names_are_refused(objects: Objects) -> None:
    made = objects.create("configmaps", {"metadata": {"generateName": "a-", "namespace": "jos"}})
    assert made["metadata"]["name"].startswith("a-")
    with pytest.raises(ApiError) as error:
        objects.create("configmaps", config(made["metadata"]["name"]))
    assert refused(error) == (409, "AlreadyExists")
    with pytest.raises(ApiError) as error:
        objects.create("configmaps", config("b", namespace="nowhere"))
    assert error.value.message == 'namespaces "nowhere" not found'


def test_a_generation_counts_changes_of_the_spec_alone(objects: Objects) -> None:
    made = objects.create("pods", pod())
    made["metadata"]["labels"] = {"a": "b"}
    made = objects.replace("pods", made)
    made = objects.replace_status("pods", made | {"status": {"phase": "Running"}})
    made = objects.patch("pods", "jos", "p", {"spec": {"nodeName": "n"}})  # bound to a node
    assert made["metadata"]["generation"] == 1
    assert objects.patch("pods", "jos", "p", {"spec": {"priority": 1}})["metadata"]["generation"] == 2


def test_what_a_caller_gets_is_its_own(objects: Objects) -> None:
    objects.create("configmaps", config() | {"data": {"a": "b"}})
    objects.get("configmaps", "jos", "c")["data"]["a"] = "changed"
    assert objects.list("configmaps")[0]["data"] == {"a": "b"}


def test_a_pod_on_a_node_has_its_grace_period_and_others_go_at_once(objects: Objects) -> None:
    objects.create("pods", pod("waiting"))
    objects.create("pods", pod("runs", nodeName="n"))
    objects.delete("pods", "jos", "waiting")
    objects.delete("pods", "jos", "runs")
    (left,) = objects.list("pods")
    assert left["metadata"]["name"] == "runs"
    later = (NOW + timedelta(seconds=30)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert left["metadata"]["deletionTimestamp"] == later
    objects.replace_status("pods", left | {"status": {"phase": "Failed"}})
    assert objects.list("pods")  # it is the kubelet that ends it
    objects.delete("pods", "jos", "runs", grace=0)
    assert objects.list("pods") == []


def test_finalizers_hold_and_none_may_be_added_at_the_end(objects: Objects) -> None:
    objects.create("configmaps", config(finalizers=["a", "b"]))
    marked = objects.delete("configmaps", "jos", "c")
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 0
    assert objects.delete("configmaps", "jos", "c") == marked
    with pytest.raises(ApiError) as error:
        objects.patch("configmaps", "jos", "c", {"metadata": {"finalizers": ["a", "b", "c"]}})
    assert "no new finalizers" in error.value.message
    objects.patch("configmaps", "jos", "c", {"metadata": {"finalizers": ["b"]}})
    objects.patch("configmaps", "jos", "c", {"metadata": {"finalizers": None}})
    assert objects.list("configmaps") == []


def test_dependents_go_when_their_last_owner_has_gone(objects: Objects) -> None:
    one, two = objects.create("configmaps", config("one")), objects.create("configmaps", config("two"))
    objects.create("configmaps", config("both", one, two))
    objects.delete("configmaps", "jos", "one")
    (reference,) = objects.get("configmaps", "jos", "both")["metadata"]["ownerReferences"]
    assert reference["name"] == "two"
    objects.delete("configmaps", "jos", "two")
    assert objects.list("configmaps") == []
    objects.create("configmaps", config("late", one))
    assert objects.list("configmaps") == []  # its owner had gone before it came


def test_foreground_deletion_waits_for_dependents_and_orphans_are_left(objects: Objects) -> None:
    owner = objects.create("configmaps", config("owner"))
    objects.create("configmaps", config("held", owner, finalizers=["a"]))
    objects.delete("configmaps", "jos", "owner", propagation="Foreground")
    assert "deletionTimestamp" in objects.get("configmaps", "jos", "held")["metadata"]
    assert objects.get("configmaps", "jos", "owner")["metadata"]["finalizers"] == ["foregroundDeletion"]
    objects.patch("configmaps", "jos", "held", {"metadata": {"finalizers": None}})
    assert objects.list("configmaps") == []
    owner = objects.create("configmaps", config("owner"))
    objects.create("configmaps", config("left", owner))
    objects.delete("configmaps", "jos", "owner", propagation="Orphan")
    assert "ownerReferences" not in objects.get("configmaps", "jos", "left")["metadata"]


def test_a_namespace_ends_with_all_that_is_in_it(objects: Objects) -> None:
    objects.create("configmaps", config("a", finalizers=["x"]))
    objects.create("pods", pod())
    objects.delete("namespaces", None, "jos")
    assert objects.get("namespaces", None, "jos")["status"]["phase"] == "Terminating"
    with pytest.raises(ApiError) as error:
        objects.create("pods", pod("new"))
    assert refused(error) == (403, "Forbidden")
    objects.patch("configmaps", "jos", "a", {"metadata": {"finalizers": None}})
    assert objects.list("namespaces") == []


def test_delete_keeps_to_its_preconditions(objects: Objects) -> None:
    objects.create("configmaps", config())
    for condition in ({"uid": "other"}, {"resource_version": "0"}):
        with pytest.raises(ApiError) as error:
            objects.delete("configmaps", "jos", "c", **condition)
        assert refused(error) == (409, "Conflict")


def test_a_dry_run_answers_and_changes_nothing(objects: Objects) -> None:
    assert objects.create("configmaps", config(), dry_run=True)["metadata"]["uid"]
    assert objects.list("configmaps") == []
    objects.create("configmaps", config())
    version = objects.version
    changed = objects.patch("configmaps", "jos", "c", {"data": {"a": "b"}}, dry_run=True)
    assert changed["data"] == {"a": "b"}
    objects.delete("configmaps", "jos", "c", dry_run=True)
    assert objects.version == version


def test_admission_changes_and_refuses(objects: Objects) -> None:
    def suspend(review: Review) -> None:
        if review.operation == "CREATE" and review.resource == "configmaps":
            review.obj["data"] = {"suspend": "true"}

    def nothing_ends(review: Review) -> None:
        if review.operation == "DELETE":
            raise ApiError(403, "Forbidden", "not now")

    objects.mutators.append(suspend)
    objects.validators.append(nothing_ends)
    assert objects.create("configmaps", config())["data"] == {"suspend": "true"}
    with pytest.raises(ApiError, match="not now"):
        objects.delete("configmaps", "jos", "c")


POLICY = {
    "metadata": {"name": "small"},
    "spec": {
        "matchConstraints": {
            "resourceRules": [
                {
                    "apiGroups": [""],
                    "apiVersions": ["v1"],
                    "operations": ["CREATE", "UPDATE"],
                    "resources": ["configmaps"],
                }
            ]
        },
        "matchConditions": [{"name": "not-mine", "expression": "object.metadata.name != 'mine'"}],
        "variables": [
            {"name": "data", "expression": "has(object.data) ? object.data : {}"},
            {"name": "broken", "expression": "object.spec.nothing"},
        ],
        "validations": [
            {
                "expression": "size(variables.data) < 2",
                "messageExpression": "'no more than one in ' + object.metadata.name",
            },
            {
                "expression": "oldObject == null || oldObject.data.a == variables.data.a",
                "message": "a stays",
                "reason": "Forbidden",
            },
        ],
    },
}
BINDING = {
    "metadata": {"name": "small"},
    "spec": {
        "policyName": "small",
        "validationActions": ["Deny"],
        "matchResources": {"namespaceSelector": {"matchLabels": {"checked": "yes"}}},
    },
}


def test_admission_policies_are_enforced_where_they_are_bound(objects: Objects) -> None:
    objects.create("validatingadmissionpolicies", POLICY)
    objects.create("validatingadmissionpolicybindings", BINDING)
    big = {"data": {"a": "1", "b": "2"}}
    objects.create("configmaps", config("before") | big)  # the namespace is not selected yet
    objects.patch("namespaces", None, "jos", {"metadata": {"labels": {"checked": "yes"}}})
    with pytest.raises(ApiError) as error:
        objects.create("configmaps", config() | big)
    assert refused(error) == (422, "Invalid")
    denied = "ValidatingAdmissionPolicy 'small' with binding 'small' denied request: no more than one in c"
    assert error.value.message == f'configmaps "c" is forbidden: {denied}'
    objects.create("configmaps", config() | {"data": {"a": "1"}})
    with pytest.raises(ApiError, match="a stays") as error:
        objects.patch("configmaps", "jos", "c", {"data": {"a": "2"}})
    assert refused(error) == (403, "Forbidden")
    objects.create("configmaps", config("mine") | big)
    objects.create("secrets", config() | big)


RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
QUIET = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_a_restricted_namespace_takes_only_restricted_pods(objects: Objects) -> None:
    objects.create("pods", pod("before"))
    enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
    objects.patch("namespaces", None, "jos", {"metadata": {"labels": enforce}})
    with pytest.raises(ApiError) as error:
        objects.create("pods", pod("open", volumes=[{"name": "v", "hostPath": {"path": "/"}}]))
    assert refused(error) == (403, "Forbidden")
    for told in ("allowPrivilegeEscalation", 'drop=["ALL"]', "runAsNonRoot", "seccompProfile", '"hostPath"'):
        assert told in error.value.message
    containers = [{"name": "c", "securityContext": RESTRICTED}]
    objects.create("pods", pod("shut", securityContext=QUIET, containers=containers))
    open_init = pod("p", securityContext=QUIET, containers=containers, initContainers=[{"name": "init"}])
    with pytest.raises(ApiError, match='container "init"'):
        objects.create("pods", open_init)
    objects.patch("pods", "jos", "before", {"metadata": {"labels": {"a": "b"}}})


def test_subscribers_see_every_change_in_order_though_they_write_themselves(objects: Objects) -> None:
    seen: list[Change] = []

    def answer(change: Change) -> None:
        if change.type == "ADDED" and change.resource == "pods":
            objects.patch("pods", "jos", change.obj["metadata"]["name"], {"metadata": {"labels": {"seen": "yes"}}})

    objects.subscribe(answer)
    leave = objects.subscribe(seen.append)
    threads = [threading.Thread(target=objects.create, args=("pods", pod(f"p{n}"))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [change.rv for change in seen] == sorted({change.rv for change in seen})
    assert [change.type for change in seen].count("MODIFIED") == 8
    leave()
    objects.create("pods", pod("last"))
    assert len(seen) == 16


def test_history_is_there_until_it_is_compacted(objects: Objects) -> None:
    start = objects.version
    for name in "abc":
        objects.create("configmaps", config(name))
    assert [change.obj["metadata"]["name"] for change in objects.changes(start)] == ["a", "b", "c"]
    objects.compact(keep=1)
    assert [change.obj["metadata"]["name"] for change in objects.changes(objects.version - 1)] == ["c"]
    with pytest.raises(ApiError) as error:
        objects.changes(start)
    assert refused(error) == (410, "Expired")


def test_history_and_so_memory_has_an_end() -> None:
    objects = Objects(namespaces=("jos",), history=10)
    for number in range(100):
        objects.create("configmaps", config(f"c{number}"))
    with pytest.raises(ApiError):
        objects.changes(1)
    assert len(objects.changes(objects.version - 10)) == 10


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("a=1", ["one"]),
        ("a!=1", ["none", "two"]),
        ("a in (1, 2),b", ["two"]),
        ("a notin (2)", ["none", "one"]),
        ("!a", ["none"]),
        ({"a": "2", "b": "x"}, ["two"]),
    ],
)
def test_labels_select(objects: Objects, selector: Any, names: list[str]) -> None:
    objects.create("configmaps", config("none"))
    objects.create("configmaps", config("one", labels={"a": "1"}))
    objects.create("configmaps", config("two", labels={"a": "2", "b": "x"}))
    assert [obj["metadata"]["name"] for obj in objects.list("configmaps", labels=selector)] == names


def test_fields_select_where_they_may(objects: Objects) -> None:
    objects.create("pods", pod("a"))
    made = objects.create("pods", pod("b"))
    objects.replace_status("pods", made | {"status": {"phase": "Running"}})
    assert [p["metadata"]["name"] for p in objects.list("pods", fields="status.phase!=Pending")] == ["b"]
    with pytest.raises(ApiError) as error:
        objects.list("pods", fields="spec.containers=x")
    assert refused(error) == (400, "BadRequest")


def test_field_sets_survive_their_written_form() -> None:
    obj = {"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 1}]}], "x": {}}, "metadata": {}}
    obj["metadata"] = {"finalizers": ["f/g"], "labels": {"l": "1"}}
    paths = frozenset(leaves(obj, Shape(root=True)))
    assert parse_v1(fields_v1(paths)) == paths
    port = 'k:{"containerPort":1,"protocol":"TCP"}'
    assert ("f:spec", "f:containers", 'k:{"name":"a"}', "f:ports", port, "f:containerPort") in paths


def test_merging_and_taking_away_keep_to_keys() -> None:
    shape = Shape(root=True)
    live = {"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}], "tolerations": [1]}}
    wanted = {"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "c"}], "tolerations": [2]}}
    both = merged(live, wanted, shape)
    assert [c["name"] for c in both["spec"]["containers"]] == ["a", "b", "c"]
    assert both["spec"]["containers"][1]["image"] == "2"
    assert both["spec"]["tolerations"] == [2]  # an atomic list
    gone = without(both, [("f:spec", "f:containers", 'k:{"name":"a"}'), ("f:spec", "f:tolerations")], shape)
    assert gone == {"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "c"}]}}


_NAMES = st.sampled_from(["a", "b", "c"])
_CONTAINERS = st.dictionaries(_NAMES, st.dictionaries(st.sampled_from(["image", "tty"]), st.integers(0, 2)), max_size=3)
_WANTED = st.fixed_dictionaries({"labels": st.dictionaries(_NAMES, _NAMES, max_size=2), "containers": _CONTAINERS})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["one", "two"]), _WANTED), min_size=1, max_size=6))
def test_whatever_is_applied_is_there_twice_changes_nothing_and_what_nobody_wants_goes(
    applies: list[tuple[str, dict[str, Any]]],
) -> None:
    objects = Objects(Clock(), namespaces=("jos",))
    last: dict[str, set[tuple[str, ...]]] = {}
    for manager, wanted in applies:
        containers = [{"name": name} | fields for name, fields in wanted["containers"].items()]
        template = {"metadata": {"labels": wanted["labels"]}, "spec": {"containers": containers}}
        body = {"metadata": {"name": "d"}, "spec": {"template": template}}
        made = objects.apply("deployments", "jos", "d", body, field_manager=manager, force=True)
        again = objects.apply("deployments", "jos", "d", body, field_manager=manager, force=True)
        assert made == again
        there, mine = (leaves(obj["spec"], Shape(name="spec")) for obj in (made, body))
        full = {path: value for path, value in mine.items() if value not in ({}, [])}
        assert full.items() <= there.items()
        last[manager] = set(full)
        assert {path for path, value in there.items() if value not in ({}, [])} <= set().union(*last.values())


def test_patches_do_what_their_rfcs_say() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": None}, "d": [2]}) == {"a": {"c": 2}, "d": [2]}
    target = {"a": [1, 3], "b~/": 1}
    operations = [
        {"op": "test", "path": "/b~0~1", "value": 1},
        {"op": "add", "path": "/a/1", "value": 2},
        {"op": "add", "path": "/a/-", "value": 4},
        {"op": "move", "from": "/b~0~1", "path": "/c"},
        {"op": "remove", "path": "/a/0"},
    ]
    assert json_patch(target, operations) == {"a": [2, 3, 4], "c": 1}
    assert target == {"a": [1, 3], "b~/": 1}
    with pytest.raises(ApiError) as error:
        json_patch(target, [{"op": "test", "path": "/a/0", "value": 5}])
    assert refused(error) == (422, "Invalid")
