"""`python -m jos.driver run job.yaml`: one job from its file to its end, with no service at all.

Under `ray job submit`, as the entrypoint of a RayJob, or by hand. The service starts `attempt JOB TOKEN` (one attempt
that its controller admitted) and `warm` (waits for such orders). Settings come from JOS_REDIS_URL, JOS_STORAGE, …
(docs/settings.md) or the embedded defaults. Exit codes: 0 completed, 1 failed, 2 the request or the set-up is at
fault, 3 another driver owns the job, 4 asked to leave (`resume` goes on), 5 cancelled, 6 Ray is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from pathlib import Path

import structlog

from jos.core.errors import JosError, NotFound
from jos.driver.attempts import ADMISSION_SECONDS, Leave, run_admitted, run_attempts
from jos.driver.cluster import disconnect
from jos.driver.driver import Ending, Outcome
from jos.driver.warm import MOST_JOBS, Left, WarmDriver
from jos.logs import log_to
from jos.request import read_request
from jos.settings import Settings
from jos.submission import submit
from jos.wiring import Wired, wired

RAY_GONE = 6
EXIT = {Ending.COMPLETED: 0, Ending.FAILED: 1, Ending.FENCED: 3, Ending.DRAINED: 4, Ending.CANCELLED: 5}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jos.driver", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="create the job of a job.yaml and run it to its end")
    run.add_argument("file", type=Path)
    run.add_argument("--job-id", help="use this id; if the job exists already, go on with it instead")
    resume = commands.add_parser("resume", help="go on with a job where its commit log ends")
    resume.add_argument("job_id")
    for command in (run, resume):
        command.add_argument("--take-over", action="store_true", help="do not ask whether its last driver lives")
    attempt = commands.add_parser("attempt", help="do the one attempt that a controller admitted")
    attempt.add_argument("job_id")
    attempt.add_argument("token")
    attempt.add_argument(
        "--await-admission",
        type=float,
        default=ADMISSION_SECONDS,
        metavar="SECONDS",
        help="a driver that its cluster started before the controller admitted the attempt waits for so long",
    )
    warm = commands.add_parser("warm", help="connect, and do the attempts that a controller orders")
    warm.add_argument("--jobs", type=int, default=MOST_JOBS, help="leave after so many")
    for command in (attempt, warm):
        name = os.environ.get("JOS_DRIVER_NAME") or f"{command.prog.rpartition(' ')[2]}-{platform.node()}-{os.getpid()}"
        command.add_argument("--name", default=name, help="what this process is called; default: JOS_DRIVER_NAME")
    for command in (run, resume, attempt, warm):
        command.add_argument("--json", action="store_true", help="the result as one line of JSON on stdout")
    return parser.parse_args()


async def _job_of(arguments: argparse.Namespace, parts: Wired) -> str:
    if arguments.command == "resume":
        return str(arguments.job_id)
    if arguments.job_id:
        try:
            return (await parts.store.get(arguments.job_id)).id
        except NotFound:
            pass  # the usual case: the first start under this id
    request = read_request(arguments.file)
    org = parts.settings.org
    return (await submit(request, parts.store, parts.storage, parts.registry, org, arguments.job_id)).id


async def _attempt(arguments: argparse.Namespace) -> int:
    leave = Leave()
    leave.listen()
    async with wired(Settings()) as parts:
        try:
            seconds = arguments.await_admission
            outcome = await run_admitted(
                arguments.job_id, arguments.token, arguments.name, parts, leave, admission=seconds
            )
        finally:
            await asyncio.to_thread(disconnect)
    _report(arguments.job_id, outcome, arguments.json)
    return EXIT[outcome.ending]


async def _warm(arguments: argparse.Namespace) -> int:
    leave = Leave()
    leave.listen()
    async with wired(Settings()) as parts:
        left = await WarmDriver(arguments.name, parts, leave, arguments.jobs).serve()
        structlog.get_logger().info("leaving", driver=arguments.name, why=str(left))
        if left is Left.RAY_GONE:
            os._exit(RAY_GONE)  # whatever waits for Ray's answer would keep this process
        await asyncio.to_thread(disconnect)
    return 0


async def _main(arguments: argparse.Namespace) -> int:
    if arguments.command == "attempt":
        return await _attempt(arguments)
    if arguments.command == "warm":
        return await _warm(arguments)
    async with wired(Settings()) as parts:
        job_id = await _job_of(arguments, parts)
        structlog.get_logger().info("job", id=job_id)
        outcome = await run_attempts(job_id, parts, take_over=arguments.take_over)
        _report(job_id, outcome, arguments.json)
        return EXIT[outcome.ending]


def _report(job_id: str, outcome: Outcome, as_json: bool) -> None:
    if as_json:
        result = {"id": job_id, "ending": outcome.ending, "message": outcome.message}
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        structlog.get_logger().info(str(outcome.ending), job=job_id, message=outcome.message)


def main() -> int:
    arguments = _arguments()
    log_to(sys.stderr, person=True if arguments.command in ("run", "resume") else None)
    try:
        return asyncio.run(_main(arguments))
    except JosError as error:
        if arguments.json:
            sys.stdout.write(json.dumps({"error": {"code": error.code, "message": str(error)}}) + "\n")
        sys.stderr.write(f"error ({error.code}): {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
