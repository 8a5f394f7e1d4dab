"""All that is wrong with the body of a job's creation, at once: what breaks its shape, and what the pipeline refuses in
the rest of it.

May import: fastapi, pydantic, jos below the API. Tests: tests/integration/test_api_jobs.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.responses import Response

from jos import wire
from jos.api.bodies import JsonRoute
from jos.api.context import Caller, Service, service
from jos.api.errors import MOST_VIOLATIONS, in_body, steps_of
from jos.core import config
from jos.core.errors import ConfigInvalid, JosError, Violation
from jos.core.model import JobRequest
from jos.core.schema import json_path


class CreationRoute(JsonRoute):
    """For the routes of jobs, of which the creation alone has a body."""

    given: ClassVar[Mapping[str, Any]] = {"name": "?", "pipeline_type": "batch"}  # in the place of what is broken

    @staticmethod
    def read(body: Mapping[str, Any]) -> wire.JobCreate:
        """What the body asks for. Raises ValidationError."""
        return wire.JobCreate.model_validate(body)

    @staticmethod
    def told(body: Mapping[str, Any], found: list[Violation]) -> list[Violation]:
        """What the pipeline refuses, at the places of the body."""
        return found

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                if not _only_in_body(error):
                    raise
                found = await self._all(service(request), request.scope["jos.caller"], error)
                raise ConfigInvalid("The body is not valid.", found) from None

        return handled

    async def _all(self, parts: Service, caller: Caller, error: RequestValidationError) -> list[Violation]:
        found = error.errors()
        violations = list(in_body(found))
        if len(violations) >= MOST_VIOLATIONS:  # there is no room for more
            return violations
        broken = [json_path(steps_of(one)) for one in found]
        if "$.pipeline_version" in broken:  # another version may refuse other things
            return violations
        more = await self._of_configuration(parts, caller, {**self.given, **_mended(error.body, found)})
        return violations + [one for one in more if not any(_meet(one.path, path) for path in broken)]

    async def _of_configuration(self, parts: Service, caller: Caller, body: dict[str, Any]) -> list[Violation]:
        """What the pipeline refuses; nothing where there is no telling which pipeline is meant."""
        try:
            asked = self.read(body)
            pipeline = await parts.catalogue.runnable(caller.org_id, asked.pipeline_key, asked.pipeline_version)
            config.resolve(pipeline, JobRequest.model_construct(**vars(asked)))
        except ConfigInvalid as error:
            return self.told(body, error.violations)
        except (ValidationError, JosError):
            return []
        return []


def _only_in_body(error: RequestValidationError) -> bool:
    found = error.errors()
    return isinstance(error.body, dict) and all(
        one["loc"][0] == "body" and one["type"] != "json_invalid" for one in found
    )


def _mended(body: dict[str, Any], found: Sequence[Any]) -> dict[str, Any]:
    """The body without what is broken in it. An input that is broken stays as one, so that the others keep their
    places."""
    for one in found:
        *way, last = steps_of(one) or [""]
        target: Any = body
        with contextlib.suppress(KeyError, IndexError, TypeError):  # what is around it was broken and went before
            for step in way:
                target = target[step]
            if isinstance(target, list) and isinstance(last, int):
                target[last] = {"file_id": "?"}
            elif isinstance(target, dict):
                target.pop(last, None)
    return body


def _meet(one: str, other: str) -> bool:
    """Whether one path is the other's or leads to it: what is said of the one may come of what is wrong with the
    other."""
    short, long = sorted((one, other), key=len)
    return long == short or (long.startswith(short) and long[len(short)] in ".[")
