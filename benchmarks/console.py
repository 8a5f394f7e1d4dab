"""How fast does the console open a large job, page through 100,000, and how does it grow while it is left open?

    python -m benchmarks.console [--stored 100000] [--loads 9] [--minutes 10] [--rounds 9] [--small]

A real Chromium on the built console and one `jos api` process, all on the machine's two CPUs; no driver and no
controller, so nothing else works meanwhile. Times are taken in the page: from a click to the frame in which the wanted
rows are painted. A load is that of a window of its own with an empty cache. The page that is left open listens to a
running job of 1,000 inputs and 10,000 events that tells 50 more events a second; it is looked at four times, after a
garbage collection, and by nobody in between. Bars: interactive <= 1.5 s; growth < 20 MB in 10 minutes. Needs
`make console .browser/chromium`.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import psutil

from benchmarks.api import ORG, Server, fill, on_schedule, spec_of, start_server
from benchmarks.harness import ROOT, Report, Spread, bar, end, number, sandbox, say, table
from jos.core import lifecycle
from jos.core.commands import Admit, Started
from jos.core.ids import new_id
from jos.core.model import EventDraft, InputState, InputStatus, Level, ProgressDraft
from jos.store.keys import ApiKeys
from jos.store.records import Mirror

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page, Playwright

CHROMIUM = ROOT / ".browser" / "chromium"
BUILT = ROOT / "jos" / "console" / "dist" / "index.html"
FEW = 120  # jobs of the organisation that the large one is compared with: three pages
WAITING = 300  # jobs of each that are not over, so that a filter of two statuses has two
INPUTS, EVENTS = 1000, 10_000
TOLD_EVERY = 0.5  # seconds, as drivers do
A_SECOND = 50  # events
PATIENCE = 60.0  # seconds for anything to be shown
MB = 1e6

# Acts, and tells how many ms later `wanted(page)` has become true and is painted. `long` tasks of the main thread are
# gathered from the beginning, so that a page which shows all and still computes does not count as ready.
_LONG = """window.long = [];
new PerformanceObserver((list) => window.long.push(...list.getEntries())).observe({type: 'longtask', buffered: true})"""
_UNTIL = """([selector, place, wanted]) => new Promise((done) => {
  const text = (found) => document.querySelector(found)?.textContent ?? '';
  const ready = {
    list: (was) => text('nav.pager span') && text('nav.pager span') !== was && document.querySelector('tbody tr'),
    job: () => document.querySelector('.connection.live') && document.querySelector('[aria-label=Events] tbody tr')
      && document.querySelector('[aria-label=Inputs] tbody tr') && document.querySelector('[aria-label=Progress]'),
    story: () => document.querySelector('.lanes [role=img] rect'),
  }[wanted];
  const was = text('nav.pager span');
  const began = performance.now();
  const look = () => {
    if (!ready(was)) return;
    watch.disconnect();
    requestAnimationFrame(() => setTimeout(() => done([began, performance.now()])));
  };
  const watch = new MutationObserver(look);
  watch.observe(document.body, {childList: true, subtree: true, characterData: true, attributes: true});
  if (selector) document.querySelector(selector).click();
  if (place) location.hash = place;
  look();
})"""


# --- the service and its jobs -------------------------------------------------------------------------


async def waiting(server: Server, org: str) -> None:
    template = spec_of(0)
    for _ in range(WAITING):
        when = datetime.now(UTC)
        changed = {"id": new_id("job"), "org_id": org, "name": "waits", "created_at": when}
        made = lifecycle.new_job(template.model_copy(update=changed), when)
        await server.store.create(made.job, list(made.events))


class Large:
    """A running job of so many inputs and events, and its driver's voice."""

    def __init__(self, server: Server, job_id: str, inputs: list[str]) -> None:
        self.server, self.id, self.inputs = server, job_id, inputs
        self.seq = self.told = self.finished = 0

    @classmethod
    async def make(cls, server: Server) -> Large:
        async with httpx2.AsyncClient(base_url=f"{server.url}/v0.5", headers=server.headers, timeout=60) as client:
            file = {"file": ("records.jsonl", b'{"text": "a"}\n', "application/x-ndjson")}
            (await client.post("/files", files=file)).raise_for_status()
            body = {
                "name": "very many", "pipeline_type": "batch", "pipeline_key": "shout",
                "inputs": {"worker.data": [{"file_id": "records.jsonl"}] * INPUTS},
                "parameters": {"worker": {"parallelism": 1, "config": {}}},
            }  # fmt: skip
            job = (await client.post("/batch/jobs", json=body)).raise_for_status().json()["id"]
            answer = await client.get(f"/batch/jobs/{job}/inputs", params={"limit": INPUTS})
            inputs = [one["id"] for one in answer.json()["inputs"]]
        for command in (Admit(job), Started(job)):
            await server.store.transact(job, command, datetime.now(UTC))
        large = cls(server, job, inputs)
        while large.told < EVENTS:
            await large.tell(500, 0)
        return large

    async def tell(self, events: int, finished: int) -> None:
        """Events, a step of progress, and so many inputs that are done."""
        now = datetime.now(UTC)
        self.seq, first = self.seq + 1, self.told
        self.told += events
        done = self.inputs[self.finished : self.finished + finished]
        self.finished += len(done)
        under_way = self.inputs[min(self.finished, len(self.inputs) - 1)]
        states = [InputState(input_id=one, status=InputStatus.COMPLETED, completed_at=now) for one in done]
        states += [InputState(input_id=under_way, status=InputStatus.PROCESSING)]
        metrics = {"percent_complete": self.seq % 100, "items_processed": self.told, "success": self.told, "failed": 0}
        await self.server.store.mirror(
            self.id,
            Mirror(
                token=self.id, seq=self.seq, at=now, inputs=states,
                events=[
                    EventDraft(
                        event_type="inference.success", level=Level.INFO, message=f"said {n}", input_id=under_way,
                        payload={"items": 64, "seconds": 0.25}, created_at=now,
                    )
                    for n in range(first, self.told)
                ],
                progress=[ProgressDraft(kind="inference", input_id=under_way, metrics=metrics, created_at=now)],
            ),
        )  # fmt: skip


@asynccontextmanager
async def service(folder: Path, stored: int) -> AsyncIterator[tuple[Server, dict[str, str]]]:
    """With the keys of an organisation of many jobs, and of one of few."""
    server = await start_server(folder, stored)
    try:
        small = f"{ORG}_small"
        await fill(server.store, FEW, small)
        for org in (ORG, small):
            await waiting(server, org)
        _, key = await ApiKeys(server.store.connection).create(small, "user", "bench", datetime.now(UTC))
        yield server, {f"{stored:,}": server.key, f"{FEW:,}": key}
    finally:
        await asyncio.to_thread(end, server.process)
        await server.store.close()


# --- the browser --------------------------------------------------------------------------------------


@asynccontextmanager
async def window(browser: Browser, server: Server, place: str) -> AsyncIterator[Page]:
    """A new one, with an empty cache, before its sign-in."""
    context = await browser.new_context(locale="en-US", base_url=server.url)
    try:
        await context.add_init_script(_LONG)
        page = await context.new_page()
        await page.goto(f"/console{place}")
        await page.get_by_label("API key").wait_for()
        yield page
    finally:
        await context.close()


async def until(page: Page, wanted: str, *, click: str = "", place: str = "") -> tuple[float, float]:
    """ms of the page's clock: when it was asked for, when it was there."""
    began, there = await asyncio.wait_for(page.evaluate(_UNTIL, [click, place, wanted]), PATIENCE)
    return began, there


async def loads(browser: Browser, server: Server, large: Large, count: int) -> dict[str, list[float]]:
    """Of the job's page, in seconds."""
    found = defaultdict(list)
    for _ in range(count):
        async with window(browser, server, f"#/jobs/{large.id}") as page:
            at = await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
            await page.get_by_label("API key").fill(server.key)
            began, there = await until(page, "job", click=".sign-in button")
            _, whole = await until(page, "story")
            await page.wait_for_timeout(1500)
            busy = await page.evaluate("window.long.map((one) => [one.startTime, one.duration])")
            quiet = max([there, *(start + took for start, took in busy if began <= start <= whole)])
            found["the address, to the field for the key"].append((at or 0) / 1000)
            found["sign-in, to the job shown and live"].append((there - began) / 1000)
            found["sign-in, to the time line of all events too"].append((whole - began) / 1000)
            found["both, to a main thread with time for the user"].append(((at or 0) + quiet - began) / 1000)
    return found


STEPS = {  # what is clicked, or where one goes
    "next page": {"click": "[aria-label='Next page of jobs']"},
    "last page": {"click": "[aria-label='Last page of jobs']"},
    "filter by one status": {"place": "#/jobs?status=COMPLETED"},
    "filter by two": {"place": "#/jobs?status=COMPLETED&status=PENDING"},
    "the last page of that": {"click": "[aria-label='Last page of jobs']"},
    "search, one is found": {"place": "#/jobs?q=WANTED"},
    "search, all are found": {"place": "#/jobs?q=SHOUT"},
}


async def lists(browser: Browser, server: Server, key: str, wanted: str) -> dict[str, float]:
    """ms of each step through the list of jobs, from a sign-in on."""
    async with window(browser, server, "#/jobs") as page:
        await page.get_by_label("API key").fill(key)
        took = {"first page, from the sign-in": await until(page, "list", click=".sign-in button")}
        for name, step in STEPS.items():
            step = {part: said.replace("WANTED", wanted) for part, said in step.items()}
            took[name] = await until(page, "list", **step)
        return {name: there - began for name, (began, there) in took.items()}


@asynccontextmanager
async def alone(folder: Path) -> AsyncIterator[str]:
    """A browser that nobody drives, and where it can be asked: whoever drives a page has it record all that it asks."""
    home = folder / "browser"
    process = start_browser(home)
    try:
        for _ in range(300):
            said = (home / "DevToolsActivePort").read_text().split() if (home / "DevToolsActivePort").exists() else []
            if len(said) == 2:
                yield f"http://127.0.0.1:{said[0]}"
                return
            await asyncio.sleep(0.1)
        raise RuntimeError(f"the browser did not start:\n{home.with_suffix('.log').read_text()[-3000:]}")
    finally:
        await asyncio.to_thread(end, process)


def start_browser(home: Path) -> subprocess.Popen[bytes]:
    options = ["--headless", "--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={home}"]
    with home.with_suffix(".log").open("wb") as out:
        return subprocess.Popen([CHROMIUM, *options, "about:blank"], stdout=out, stderr=out)


@asynccontextmanager
async def visited(playwright: Playwright, address: str) -> AsyncIterator[Page]:
    """Its page, which stays open when the visit is over."""
    browser = await playwright.chromium.connect_over_cdp(address)
    try:
        yield browser.contexts[0].pages[0]
    finally:
        await browser.close()


async def sample(page: Page) -> dict[str, float]:
    """The heap after a garbage collection and the memory of the page's process, in MB; its nodes."""
    tools = await page.context.new_cdp_session(page)
    await tools.send("Performance.enable")
    await tools.send("HeapProfiler.collectGarbage")
    metrics = {m["name"]: m["value"] for m in (await tools.send("Performance.getMetrics"))["metrics"]}
    rendering = [p for p in psutil.Process().children(recursive=True) if "--type=renderer" in " ".join(p.cmdline())]
    own = max(process.memory_full_info().uss for process in rendering)  # there is a small spare one beside it
    return {"heap": metrics["JSHeapUsedSize"] / MB, "nodes": metrics["Nodes"], "process": own / MB}


async def left_open(
    playwright: Playwright, folder: Path, server: Server, large: Large, minutes: float
) -> dict[str, Any]:
    """Samples by minute: before the first event, after the first minute of them, at half of the time, at its end. No
    more, for each visit leaves some scripts in the page."""

    async def tell(_number: int, _due: float) -> None:
        await large.tell(int(A_SECOND * TOLD_EVERY), 1)

    samples: dict[float, dict[str, float]] = {}
    looks = sorted({min(1.0, minutes), minutes / 2, minutes})
    before = large.told
    async with alone(folder) as address:
        async with visited(playwright, address) as page:
            await page.goto(f"{server.url}/console#/jobs/{large.id}")
            await page.get_by_label("API key").fill(server.key)
            await until(page, "job", click=".sign-in button")
            await until(page, "story")
            samples[0.0] = await sample(page)
        for begin, minute in pairwise([0.0, *looks]):
            await on_schedule(1 / TOLD_EVERY, 60 * (minute - begin), tell)
            async with visited(playwright, address) as page:
                await page.get_by_role("cell", name=f"said {large.told - 1}", exact=True).wait_for()  # it kept up
                samples[minute] = await sample(page)
            say(f"left open, minute {minute:g}: {samples[minute]}")
    return {"samples": samples, "events": large.told - before}


# --- the whole ----------------------------------------------------------------------------------------


@dataclass
class Found:
    loads: dict[str, list[float]]
    lists: dict[str, dict[str, list[float]]]  # step -> how many jobs -> ms
    open: dict[str, Any]


async def measure(folder: Path, stored: int, loads_: int, rounds: int, minutes: float) -> Found:
    from playwright.async_api import async_playwright

    async with service(folder, stored) as (server, keys), async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        large = await Large.make(server)
        await loads(browser, server, large, 1)  # warm: files in memory, compiled code
        opened = await loads(browser, server, large, loads_)
        listed: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for number_ in range(rounds):
            for name, key in keys.items():
                wanted = f"job+{(stored if key == server.key else FEW) - 1}"
                for step, ms in (await lists(browser, server, key, wanted)).items():
                    listed[step][name].append(ms)
            say(f"lists, round {number_ + 1} of {rounds}")
        await browser.close()
        stays = await left_open(playwright, folder, server, large, minutes)
        return Found(opened, listed, stays)


def report(found: Found, small: bool) -> None:
    out = Report("console", "The console in a real Chromium", small)
    out.raw = {"loads": found.loads, "lists": found.lists, "open": found.open}
    out.add(table(["a job of 1,000 inputs and 10,000 events, s", "", "slowest"], [
        [name, f"{Spread.of(values).median:.2f}", f"{max(values):.2f}"] for name, values in found.loads.items()
    ]))  # fmt: skip
    whole = next(values for name, values in found.loads.items() if name.startswith("both"))
    count = len(whole)
    out.add(f"Interactive: {max(whole):.2f} s at most in {count} loads (at most 1.5: {bar(max(whole) <= 1.5)}).")
    names = list(next(iter(found.lists.values())))
    rows = [[step, *(Spread.of(by[name]).text(0) for name in names)] for step, by in found.lists.items()]
    out.add(table(["the list of jobs, ms to rows painted", *(f"of {name} jobs" for name in names)], rows))
    samples = found.open["samples"].values()
    out.add(table(["left open", *(f"{minute:g} min" for minute in found.open["samples"])], [
        ["heap, MB", *(f"{one['heap']:.1f}" for one in samples)],
        ["nodes", *(number(one["nodes"], 0) for one in samples)],
        ["the page's process, MB", *(f"{one['process']:.0f}" for one in samples)],
    ]))  # fmt: skip
    first, *later = samples
    growth = {kind: max(one[kind] for one in later) - first[kind] for kind in ("heap", "process")}
    out.add(
        f"{found.open['events']:,} events, all shown: the heap has grown by {growth['heap']:.1f} MB at most, the "
        f"process by {growth['process']:.1f} MB (less than 20: {bar(max(growth.values()) < 20)})."
    )
    out.add("Medians (least..most) of windows of their own with an empty cache, browser and server on the same CPUs.")
    out.write(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stored", type=int, default=100_000)
    parser.add_argument("--loads", type=int, default=9)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    if not BUILT.exists() or not CHROMIUM.exists():
        raise SystemExit("The built console or a browser is missing: make console .browser/chromium (needs Node).")
    stored, count, minutes = arguments.stored, arguments.loads, arguments.minutes
    if arguments.small:
        stored, count, minutes = 2_000, 2, 0.2
    with sandbox() as folder:
        found = asyncio.run(measure(folder, stored, count, arguments.rounds, minutes))
    report(found, arguments.small)


if __name__ == "__main__":
    main()
