"""Commands of whoever runs the service: up, api, controller, login, keys, recover, verify.

May import: jos.up, jos.api, jos.controller, jos.recovery, jos.verify, jos.client, jos.terminal.
Tests: tests/e2e/test_up.py.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jos import profiles
from jos.core.errors import BadRequest
from jos.settings import Settings
from jos.terminal import (
    EXIT_FAILED,
    AsJson,
    columns,
    command_line,
    connected,
    emit,
    err,
    out,
    server_meant,
    told,
)

if TYPE_CHECKING:
    from jos.up import Ready

Host = Annotated[str | None, typer.Option(help="Default: 127.0.0.1, which only this machine reaches.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Default: 8321.")]


def _settings(**given: Any) -> Settings:
    """The environment's, with what the command line says instead."""
    return Settings().model_copy(update={k: v for k, v in given.items() if v is not None})


# --- running it ---------------------------------------------------------------------------------------


def up(
    host: Host = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: 8321, or the next one that is free.")
    ] = None,
    redis_url: Annotated[str | None, typer.Option(help="Default: a Valkey of its own in the home.")] = None,
    storage: Annotated[str | None, typer.Option(help="A folder, s3:// or gs://; default: in the home.")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="http://HOST:8265, the dashboard of a Ray cluster; default: a Ray of its own.")
    ] = None,
    launcher: Annotated[
        Literal["ray_jobs", "kuberay"] | None,
        typer.Option(help="kuberay: drivers as RayJobs on Kubernetes, and no Ray here; default: ray_jobs."),
    ] = None,
    kube: Annotated[Path | None, typer.Option(help="With kuberay: the YAML file that says how pods are made.")] = None,
    num_cpus: Annotated[int | None, typer.Option(min=1, help="Of its own Ray; default: all.")] = None,
    home: Annotated[Path | None, typer.Option(help="The folder of all its state; default: JOS_HOME or ~/.jos.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole service on this machine until Ctrl-C: Valkey, Ray, the API and the controller."""
    from jos import up as service

    settings = _settings(api_host=host, redis_url=redis_url, storage=storage, home=home, launcher=launcher, kube=kube)
    dashboard = ray_address or settings.ray_dashboard
    if dashboard is not None and "://" not in dashboard:
        dashboard = f"http://{dashboard}"
    options = service.Options(settings, port, dashboard, num_cpus)

    def tell(line: str) -> None:
        err.print(line, markup=False, highlight=False)

    with told(as_json):
        tell(f"starting JOS in {settings.home_dir} …")
        service.run(options, tell, lambda ready: _print_ready(ready, settings, as_json))
        tell("stopped")


def _print_ready(ready: Ready, settings: Settings, as_json: bool) -> None:
    if as_json:
        emit({"url": ready.url, "console": f"{ready.url}/console", "home": str(ready.home), "api_key": ready.first_key})
        out.file.flush()
        return
    lines = [f"[bold green]JOS is up:[/] [bold]{ready.url}[/]   (API under {ready.url}/v0.5; Ctrl-C stops it)"]
    lines.append(f"console: [bold]{ready.url}/console[/]   (sign in with the key)")
    if ready.first_key:
        lines += [
            f"API key: [bold]{ready.first_key}[/]",
            f"         shown this once; kept for this user in {profiles.file_of(settings)}",
        ]
        key = ready.first_key
    else:
        lines.append(f"API key: as before; another one: {command_line(settings, 'keys create --name NAME')}")
        key = "$JOS_API_KEY"
    lines += [
        "try:",
        f"  curl -H 'Authorization: Bearer {key}' {ready.url}/v0.5/batch/registry/pipelines"
        if ready.first_key
        else f'  curl -H "Authorization: Bearer {key}" {ready.url}/v0.5/batch/registry/pipelines',
        f"  {command_line(settings, 'submit job.yaml --download results')}",
    ]
    for line in lines:
        out.print(line, highlight=False)
    out.file.flush()


def api(host: Host = None, port: Port = None) -> None:
    """Run the HTTP API alone, e.g. in a container; settings come from the environment."""
    from jos.api.serve import serve
    from jos.up_child import is_free, leave_with_parent

    leave_with_parent()
    settings = _settings(api_host=host, api_port=port)
    with told():
        if not is_free(settings.api_host, settings.api_port):
            raise BadRequest(
                f"port {settings.api_port} of {settings.api_host} is taken.", suggestion="Give another with --port."
            )
        serve(settings)


def controller() -> None:
    """Run one controller alone; any number may run, one leads. It needs JOS_RAY_DASHBOARD, or JOS_LAUNCHER=kuberay."""
    from jos.controller.__main__ import main
    from jos.up_child import leave_with_parent

    leave_with_parent()
    raise typer.Exit(main())


# --- who may use it -----------------------------------------------------------------------------------


def login(
    url: Annotated[str, typer.Argument(help="http(s)://… of a JOS server.")],
    profile: Annotated[str, typer.Option(help="What to call it; `jos --profile NAME …` uses it.")] = "default",
    key: Annotated[str | None, typer.Option(help="Its API key; default: JOS_API_KEY, or it is asked for.")] = None,
    as_json: AsJson = False,
) -> None:
    """Save a server and its key; from then on commands talk to it."""
    from jos.client import Client

    with told(as_json):
        secret = key or os.environ.get("JOS_API_KEY") or typer.prompt("API key", hide_input=True, err=True)
        with Client(url, secret) as client:
            client.queue()  # a wrong URL or key is told now
        path = profiles.save(Settings(), profile, client.url, secret, default=True)
        if as_json:
            emit({"profile": profile, "url": client.url, "file": str(path)})
        else:
            out.print(f"saved as {profile!r} in {path}; commands talk to {client.url} now", highlight=False)


keys_app = typer.Typer(help="API keys of the server.", no_args_is_help=True)
Here = Annotated[bool, typer.Option("--here", help="Not over the API but in the store of this JOS_HOME; needs no key.")]


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="For people.")] = "",
    role: Annotated[str, typer.Option(help="reader, user or admin.")] = "user",
    here: Here = False,
    as_json: AsJson = False,
) -> None:
    """Make an API key. The secret is shown this once."""
    with told(as_json):
        if role not in ("reader", "user", "admin"):
            raise BadRequest(f"--role {role!r} is none.", suggestion="It is reader, user or admin.")
        if here or not server_meant():
            made = asyncio.run(_key_here(name, role))
        else:
            with connected(as_json) as client:
                made = client.keys.create(name, role).model_dump(mode="json")
        if as_json:
            emit(made)
        else:
            out.print(f"{made['key']}\n{made['id']}, role {made['role']}; shown this once", highlight=False)


async def _key_here(name: str, role: Any) -> dict[str, Any]:
    from jos.recovery import save_key
    from jos.store.keys import ApiKeys
    from jos.wiring import wired

    settings = Settings()
    async with wired(settings) as parts:
        key, secret = await ApiKeys(parts.store.connection).create(settings.org, role, name, datetime.now(UTC))
        await save_key(parts.storage, key)
        return {**key.model_dump(mode="json", exclude={"hash"}), "key": secret}


@keys_app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List keys; of each only its end is known."""
    with connected(as_json) as client:
        found = [k.model_dump(mode="json", exclude={"key"}) for k in client.keys.list()]
        if as_json:
            emit({"total": len(found), "keys": found})
            return
        table = columns("id", "name", "role", "ends with", "created")
        for one in found:
            table.add_row(one["id"], one["name"], one["role"], one["last4"], one["created_at"])
        out.print(table)


@keys_app.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(metavar="KEY_ID")], as_json: AsJson = False) -> None:
    """Revoke a key: whoever uses it is out at once."""
    with connected(as_json) as client:
        client.keys.revoke(key_id)
        if as_json:
            emit({"id": key_id, "deleted": True})
        else:
            out.print(f"{key_id} is revoked", highlight=False)


# --- when something went wrong ------------------------------------------------------------------------


def recover(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be put back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put back everything that a lost Redis held, from what lies in storage."""

    async def work() -> Any:
        from jos.files.service import Files
        from jos.recovery import recover as put_back
        from jos.store.keys import ApiKeys
        from jos.store.pipelines import Pipelines
        from jos.wiring import open_queues, wired

        queues = open_queues(Settings())
        async with wired(Settings()) as parts:
            return await put_back(
                parts.store,
                parts.storage,
                files=Files(parts.store, parts.storage),
                keys=ApiKeys(parts.store.connection),
                pipelines=Pipelines(parts.store.connection),
                queue_of=lambda spec: queues.queue_of(spec.pipeline.pipeline_key, spec.pipeline.queue),
                dry_run=dry_run,
                report=lambda line: err.print(line, markup=False, highlight=False),
            )

    with told(as_json):
        found = asyncio.run(work())
        if as_json:
            emit({k: dict(v) if k == "statuses" else v for k, v in vars(found).items()})
        else:
            what = "would be put back" if dry_run else "put back"
            out.print(
                f"{found.jobs} jobs, {found.files} files, {found.keys} keys, {found.pipelines} pipelines {what}; "
                f"{found.there} jobs were there",
                highlight=False,
            )
        if not as_json:
            for note in found.notes:
                err.print(f"note: {note}", markup=False, highlight=False)
        if found.problems:
            for problem in found.problems:
                err.print(f"problem: {problem}", markup=False, highlight=False)
            raise typer.Exit(EXIT_FAILED)


def verify(
    job: Annotated[str, typer.Argument(metavar="JOB")],
    quick: Annotated[bool, typer.Option("--quick", help="Only sizes, not every byte.")] = False,
    org: Annotated[
        str | None, typer.Option(help="The job's organisation; default: as Redis has it, else it is looked for.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that everything a job left in storage is there, whole, and adds up. Changes nothing."""

    async def work() -> Any:
        from jos.verify import owner, verify_with_store
        from jos.wiring import wired

        settings = Settings()
        async with wired(settings) as parts:
            whose = org or await owner(parts.store, parts.storage, job, settings.org)
            return await verify_with_store(parts.store, parts.storage, whose, job, deep=not quick)

    with told(as_json):
        report = asyncio.run(work())
        if as_json:
            problems = [vars(p) for p in report.problems]
            emit({"ok": report.ok, "problems": problems, "notes": report.notes, "counts": report.counts})
        else:
            out.print(str(report), markup=False, highlight=False)
        if not report.ok:
            raise typer.Exit(EXIT_FAILED)


COMMANDS: list[Callable[..., object]] = [up, api, controller, login, recover, verify]
