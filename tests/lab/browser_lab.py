"""A real Chromium, driven by Playwright, for the web console's tests: a page that notes whatever goes wrong in it.

Both are made by `make test` where Node is, and may be missing where it is not.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
CHROMIUM = ROOT / ".browser" / "chromium"
BUILT = ROOT / "jos" / "console" / "dist"
AXE = ROOT / "jos" / "console" / "node_modules" / "axe-core" / "axe.min.js"
SERIOUS = {"serious", "critical"}


def aside(work: Callable[[], T]) -> T:
    """`work()` in a thread of its own: Playwright has an event loop in ours."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def missing(what: str) -> None:
    if os.environ.get("CI") and shutil.which("npm"):
        pytest.fail(f"{what}, though Node is here")
    pytest.skip(f"{what}: make test makes it, where Node is")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if not (BUILT / "index.html").exists():
        missing("the console is not built")
    if not CHROMIUM.exists():
        missing("there is no browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Console:
    """The console in a window of its own."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.url, self.wrong = url, list[str]()
        self.context = browser.new_context(locale="en-US", base_url=url, **options)
        self.context.add_init_script("window.ran = []; window.alert = (said) => window.ran.push(said)")
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("pageerror", lambda error: self.wrong.append(f"script: {error}"))
        self.page.on("console", self._said)
        self.page.on("request", self._asked)

    def _said(self, message: Any) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.wrong.append(f"console: {message.text}")  # a violated policy among others

    def _asked(self, request: Any) -> None:
        here, there = urlsplit(self.url), urlsplit(request.url)
        if there.scheme != "blob" and (here.scheme, here.netloc) != (there.scheme, there.netloc):
            self.wrong.append(f"a request left the origin: {request.url}")

    def sign_in(self, key: str, place: str = "") -> Page:
        self.page.goto(f"/console{place}")
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("navigation", name="Pages", exact=True).wait_for()
        return self.page

    def go(self, place: str) -> None:
        """By its address, without loading the page again: the key is in its memory."""
        self.page.evaluate("(place) => { location.hash = place }", place)

    def accessible(self) -> list[str]:
        """What axe finds that is serious, as one line each."""
        self.page.evaluate(AXE.read_text() + "; 0")
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{one['id']}: {one['help']} ({', '.join(str(node['target']) for node in one['nodes'][:3])})"
            for one in found["violations"]
            if one["impact"] in SERIOUS
        ]

    def close(self) -> None:
        """Nothing may have gone wrong in it."""
        ran = self.page.evaluate("window.ran")
        self.context.close()
        assert self.wrong == []
        assert ran == []


@pytest.fixture
def window(chromium: Browser) -> Iterator[Callable[..., Console]]:
    """Opens consoles; at the end each must have behaved."""
    opened: list[Console] = []

    def open_(url: str, **options: Any) -> Console:
        opened.append(Console(chromium, url, **options))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()
