"""Errors: stable codes, text that says what to do, and nothing lost on the way between processes."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from jos.core import errors
from jos.core.errors import ConfigInvalid, InputInvalid, JosError, NotFound, StorageUnavailable, Violation

ALL = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, JosError)]


def make(kind: type[JosError]) -> JosError:
    if issubclass(kind, ConfigInvalid):
        return kind("Wrong.", [Violation("$.a", "is locked.", "locked")], suggestion="Leave it out.")
    return kind("Wrong.", suggestion="Leave it out.")


@pytest.mark.parametrize("kind", ALL)
def test_every_error_survives_pickling_with_all_fields(kind: type[JosError]) -> None:
    error = make(kind)
    error.input_id = "inp_1"  # type: ignore[attr-defined]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        back = pickle.loads(pickle.dumps(error, protocol))
        assert type(back) is kind
        assert vars(back) == vars(error)
        assert (str(back), back.args, back.code, back.retryable) == (
            str(error),
            error.args,
            error.code,
            error.retryable,
        )


def test_a_subclass_of_an_author_survives_pickling() -> None:
    back = pickle.loads(pickle.dumps(BadRow("a.csv", 7)))
    assert (back.row, str(back)) == (7, "a.csv, row 7: not a number.")


class BadRow(InputInvalid):
    def __init__(self, filename: str, row: int) -> None:
        super().__init__(f"{filename}, row {row}: not a number.")
        self.row = row


@pytest.mark.parametrize("kind", ALL)
def test_codes_are_lower_snake_case_and_fit_their_http_status(kind: type[JosError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)
    assert 400 <= kind.http_status < 600
    assert kind.__doc__ or kind in (NotFound, errors.BadRequest, errors.Conflict)


def test_the_text_holds_message_and_suggestion() -> None:
    assert str(NotFound("No such job.")) == "No such job."
    assert str(NotFound("No such job.", suggestion="List them.")) == "No such job. List them."


def test_a_violation_reads_as_path_and_message() -> None:
    error = ConfigInvalid("1 thing is wrong.", [Violation("$.a", "is locked.", "locked")])
    assert str(error) == "1 thing is wrong.\n  $.a: is locked."


def test_only_what_may_pass_by_itself_is_retryable() -> None:
    retryable = {kind.__name__ for kind in ALL if kind.retryable}
    assert retryable == {"StoreUnavailable", "StorageUnavailable", "ComputeFailed", "TooManyRequests"}
    assert StorageUnavailable("Down.").retryable
