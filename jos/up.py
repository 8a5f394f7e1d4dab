"""`jos up`: the whole service on this machine, in one folder. Starts Valkey, Ray, the API and the controller, keeps
them alive, and ends them in order: first what gives out work, then the drivers (they commit what is in hand and leave),
then the rest. What was running goes on at the next start.

May import: everything below the command line but the engine. Tests: tests/unit/test_up_rules.py, tests/e2e/test_up.py.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from jos import profiles
from jos.controller import leadership
from jos.core.errors import ComputeFailed, Conflict, JosError
from jos.launch import outside, ray_head
from jos.launch.kube_profile import read_profile
from jos.launch.open import check_pods, open_launcher, reach
from jos.settings import Settings
from jos.store import embedded, lease
from jos.store.connection import Connection
from jos.store.redis import Store
from jos.up_child import Child, Tell, free_port

READY_SECONDS = 120.0
DRAIN_SECONDS = 45.0
TAKEOVER_SECONDS = 1.5  # a controller that waits for the lease asks for it each second
LOOK = 0.1
LEAD_EVERY, LEADERLESS = 5.0, 12  # seconds between looks at who leads; so many in a row that find nobody: it hangs
LOOK_SECONDS = 3.0  # that such a look may take


@dataclass(frozen=True)
class Options:
    settings: Settings
    port: int | None = None  # wanted; then another is not taken instead
    ray_dashboard: str | None = None  # of a cluster that runs already
    cpus: int | None = None


@dataclass(frozen=True)
class Ready:
    """What a person needs to know once everything runs."""

    url: str
    home: Path
    first_key: str | None  # only at the first start


# --- one service on one home --------------------------------------------------------------------------


@contextmanager
def claimed(home: Path) -> Iterator[None]:
    """This home is ours while we live; Conflict says where the one runs that has it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / profiles.LOCK).open("ab") as lock:
        for last in (*[False] * 20, True):  # a command that looks whether we run holds it for a moment
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if last:
                    raise _runs_already(home) from None
                time.sleep(0.05)
        try:
            yield
        finally:
            (home / profiles.SERVER).unlink(missing_ok=True)


def _runs_already(home: Path) -> Conflict:
    said: dict[str, Any] = {}
    with suppress(OSError, json.JSONDecodeError):
        said = json.loads((home / profiles.SERVER).read_text())
    where = f"at {said['url']} (process {said['pid']})" if said else "and is just starting"
    return Conflict(
        f"JOS runs already for {home}, {where}.",
        suggestion="Use that one, stop it, or give this one a folder of its own with --home.",
    )


@dataclass
class Service:
    """Everything that `jos up` started, in the order of its start."""

    options: Options
    tell: Tell
    settings: Settings = field(init=False)
    api: Child | None = None
    controller: Child | None = None
    own_ray: bool = False
    dashboard: str = ""
    ray_looked: float = 0.0
    lead_looked: float = 0.0
    leaderless: int = 0  # looks in a row that found no controller in the lead

    def __post_init__(self) -> None:
        self.settings = self.options.settings

    # --- up ---

    def start(self, stop: threading.Event) -> Ready | None:
        """Returns when all of it serves; None when it was told to stop before that."""
        settings = self.settings
        host = settings.api_host
        port = free_port(host, self.options.port or settings.api_port, self.options.port is not None)
        if port != (self.options.port or settings.api_port):
            self.tell(f"port {settings.api_port} is taken, so the API listens on {port}")
        self.settings = settings = settings.model_copy(update={"api_port": port, **self._outside()})
        if settings.redis_url is None:
            embedded.ensure(settings.redis_dir)
        asyncio.run(_prove(settings))
        url = _url(host, port)
        self.api = self._child("api", "api")
        self.api.start()
        self._start_ray()
        if stop.is_set():
            return None
        self.settings = self.settings.model_copy(update={"ray_dashboard": self.dashboard or None})
        self.controller = self._child("controller", "controller")
        self.controller.start()
        if not self._await_ready(url, stop):
            return None
        first_key = asyncio.run(_first_key(settings))  # now: of a start that fails nobody would see it
        if first_key is not None:
            profiles.save(settings, profiles.LOCAL, url, first_key, default=False)
        _keep_url(settings, url)
        server = {"url": url, "pid": os.getpid(), "redis_url": settings.redis_url, "dashboard": self.dashboard}
        (settings.home_dir / profiles.SERVER).write_text(json.dumps(server))
        return Ready(url, settings.home_dir, first_key)

    def _outside(self) -> dict[str, Any]:
        """What is set otherwise where drivers run on a Ray that is not ours. Raises BadRequest if they cannot work."""
        settings, dashboard = self.settings, self.options.ray_dashboard
        if self.on_kubernetes:
            check_pods(settings, profile := read_profile(settings.kube))
            self.tell(f"Kubernetes {asyncio.run(reach(profile))}, namespace {profile.namespace}")
            kube = settings.kube and settings.kube.expanduser().absolute()
            return {"kube": kube, "home": settings.home_dir, "storage": settings.storage_url}
        if dashboard is None:
            return {}
        passed = outside.passed_names(settings, dashboard)
        if missing := outside.secrets_to_have(settings):
            self.tell(f"the Ray cluster's own environment must hold {' and '.join(missing)}, which are not passed on")
        return {"pass_env": passed, "home": settings.home_dir, "storage": settings.storage_url}

    def _child(self, name: str, command: str) -> Child:
        program = [sys.executable, "-m", "jos.cli", command]
        return Child(name, program, {**os.environ, **environment(self.settings)}, self.settings.log_dir / f"{name}.log")

    @property
    def on_kubernetes(self) -> bool:
        return self.settings.launcher == "kuberay"

    def _start_ray(self) -> None:
        if self.on_kubernetes:
            return  # each attempt has a Ray of its own there
        if self.options.ray_dashboard is not None:
            self.dashboard = self.options.ray_dashboard
            return
        self.own_ray = True
        head = ray_head.start(self.settings.home_dir, environment(self.settings), self.options.cpus)
        self.dashboard = head.dashboard

    def _await_ready(self, url: str, stop: threading.Event) -> bool:
        deadline = time.monotonic() + READY_SECONDS
        with httpx2.Client(timeout=5.0) as client:
            while not stop.wait(LOOK):
                self.look()
                missing = _missing(client, url)
                if missing is None:
                    return True
                for child in (self.api, self.controller):
                    if child is not None and child.deaths >= 3:
                        raise ComputeFailed(f"{child.name} does not start; its log says:\n{child.tail()}")
                if time.monotonic() > deadline:
                    raise ComputeFailed(
                        f"JOS is not ready after {READY_SECONDS:g} s: {missing}",
                        suggestion=f"See the logs in {self.settings.log_dir}.",
                    )
        return False

    # --- while it runs ---

    def look(self) -> None:
        now = time.monotonic()
        for child in (self.api, self.controller):
            if child is not None:
                child.look(now, self.tell)
        if self.own_ray and self.controller is not None and now - self.ray_looked > 5:
            self._look_at_ray()
            self.ray_looked = time.monotonic()
        if self.controller is not None and now - self.lead_looked > LEAD_EVERY:
            self._look_at_lead(self.controller)
            self.lead_looked = time.monotonic()

    def _look_at_lead(self, controller: Child) -> None:
        """A controller that works takes a free lease within a second, so one that leaves it free for long hangs.
        Looks are counted, not seconds: this machine may have slept."""
        free = controller.running and asyncio.run(_nobody_leads(self.settings))
        self.leaderless = self.leaderless + 1 if free else 0
        if self.leaderless >= LEADERLESS:
            self.leaderless = 0
            self.tell("controller hangs: it does not lead, and nobody else does; it is ended")
            controller.kill()  # and started again as one that died

    def _look_at_ray(self) -> None:
        """Ray came to its end: a new head has other ports, so the controller is started anew too."""
        if ray_head.alive(self.settings.home_dir):
            return
        self.tell("Ray ended; starting it again")
        try:
            self._start_ray()
        except JosError as error:
            self.tell(f"Ray does not start, trying again: {error}")
            return
        assert self.controller is not None
        self.controller.stop()
        self.settings = self.settings.model_copy(update={"ray_dashboard": self.dashboard})
        self.controller = self._child("controller", "controller")
        self.controller.start()
        self.tell("Ray is started again")

    # --- down ---

    def stop(self) -> None:
        """In order; nothing that fails keeps the rest alive."""
        with ExitStack() as steps:  # last in, first out
            if self.settings.redis_url is None:
                steps.callback(embedded.stop, self.settings.redis_dir)
            if self.own_ray:
                steps.callback(ray_head.stop, self.settings.home_dir)
            if self.api is not None:
                steps.callback(self.api.stop)
            if self.controller is not None:
                steps.callback(self._drain)
                steps.callback(self.controller.stop)

    def _drain(self) -> None:
        try:
            shared = not self.own_ray and self.settings.redis_url is not None
            left = asyncio.run(drain(self.settings, self.dashboard, shared=shared))
        except JosError as error:
            self.tell(f"the drivers could not be asked to leave: {error}")
            return
        if left:
            self.tell(f"{left} jobs were asked to leave; they go on at the next start")


def environment(settings: Settings) -> dict[str, str]:
    """The settings as variables, for processes of ours."""
    named = settings.model_dump(exclude_none=True)
    return {f"JOS_{name.upper()}": str(value) for name, value in named.items()}


def _url(host: str, port: int) -> str:
    reached = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{reached}:{port}"


def _keep_url(settings: Settings, url: str) -> None:
    """The port may be another one than the last time."""
    local = profiles.load(settings).by_name.get(profiles.LOCAL)
    if local is not None and local.api_key and local.url != url:
        profiles.save(settings, profiles.LOCAL, url, local.api_key, default=False)


async def _prove(settings: Settings) -> None:
    """Raises what is wrong with store or storage."""
    from jos.wiring import wired

    async with wired(settings):
        pass


async def _first_key(settings: Settings) -> str | None:
    from jos.api.auth import bootstrap
    from jos.recovery import save_key
    from jos.store.keys import ApiKeys
    from jos.wiring import wired

    async with wired(settings) as parts:
        keys = ApiKeys(parts.store.connection)
        secret = await bootstrap(keys, settings.org)
        if secret is not None and (key := await keys.find(secret)) is not None:
            await save_key(parts.storage, key)  # so that it outlives Redis
        return secret


def _missing(client: httpx2.Client, url: str) -> str | None:
    """What is not ready yet."""
    try:
        checks = client.get(f"{url}/readyz").json()["checks"]
    except (httpx2.TransportError, ValueError, KeyError):
        return "the API does not answer."
    wrong = [f"{name}: {said}" for name, said in checks.items() if said != "ok"]
    return "; ".join(wrong) or None


async def drain(settings: Settings, dashboard: str, *, shared: bool = False) -> int:
    """Asks every driver to leave and waits until they have; how many jobs were at work. `dashboard`: "" where each
    driver has a Ray of its own. `shared`: other controllers may work on this Redis; if one leads now, the drivers are
    its own."""
    from jos.launch.ray_jobs import WARM
    from jos.wiring import wired

    async with wired(settings.model_copy(update={"ray_dashboard": dashboard or None})) as parts:
        launcher = open_launcher(parts)
        try:
            if shared and await _another_leads(parts.store.connection):
                return 0
            active = await parts.store.active()
            holding = [j for j in active if j.holds_capacity]
            at_work = [j for j in holding if not j.status.terminal]
            deadline = time.monotonic() + DRAIN_SECONDS
            stopped: set[str] = set()
            ours = {launcher.name_of(j) for j in holding}  # others may share the cluster

            def drives(name: str) -> bool:
                return name.startswith(WARM) or name in ours

            while live := [n for n, d in (await launcher.seen()).items() if d.state != "ended" and drives(n)]:
                for name in sorted(set(live) - stopped, key=lambda n: n.startswith(WARM)):
                    await launcher.stop(name)
                    stopped.add(name)
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.1)
        finally:
            await launcher.close()
        return len(at_work)


async def _nobody_leads(settings: Settings) -> bool:
    """Whether the lease is surely free. A Redis that is away says nothing about the controller."""
    try:
        async with asyncio.timeout(LOOK_SECONDS), await Store.open(settings.redis_url, settings.redis_dir) as store:
            return await lease.holder(store.connection, leadership.NAME) is None
    except (JosError, TimeoutError):
        return False


async def _another_leads(connection: Connection) -> bool:
    """After ours has let go of the lease; whoever waited for it takes it within a second."""
    deadline = time.monotonic() + TAKEOVER_SECONDS
    while time.monotonic() < deadline:
        if await lease.holder(connection, leadership.NAME) is not None:
            return True
        await asyncio.sleep(LOOK)
    return False


def run(options: Options, tell: Tell, ready: Callable[[Ready], object]) -> None:
    """Until SIGINT or SIGTERM. A second signal does not wait for drivers (nothing committed can be lost)."""
    stop = threading.Event()

    def asked(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, asked)
    with claimed(options.settings.home_dir):
        service = Service(options, tell)
        try:
            told = service.start(stop)
            if told is not None:
                ready(told)
            while not stop.wait(LOOK):
                service.look()
            tell("stopping: jobs commit what is in hand and go on at the next start (again to not wait)")
        finally:
            service.stop()
