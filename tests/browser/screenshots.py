"""Pictures of the console at work for the documentation: `make screenshots` writes docs/screenshots/*.png. A real
service runs the pipelines' own examples; each picture is taken when what it should show is there.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "lab"))

from browser_lab import CHROMIUM, Console, aside  # noqa: E402
from jobs_lab import ray_head  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402
from service_lab import Service  # noqa: E402

INTO = ROOT / "docs" / "screenshots"
PHONE = {"width": 390, "height": 844}
SCREEN = {"width": 1280, "height": 900}
TALL = {"width": 1280, "height": 1450}


def submit(service: Service, pipeline: str, **changes: Any) -> str:
    """The pipeline's own example."""
    folder = ROOT / "pipelines" / pipeline / "examples"
    body = {**yaml.safe_load((folder / "job.yaml").read_text()), **changes}
    for refs in body["inputs"].values():
        for ref in refs:
            service.upload(ref["file_id"], (folder / ref["file_id"]).read_bytes(), "text/csv")
    return str(service.call("POST", "/batch/jobs", json=body)["id"])


def take(console: Console, name: str) -> None:
    console.page.wait_for_load_state("networkidle") if "job" not in name else console.page.wait_for_timeout(700)
    console.page.evaluate("scrollTo(0, 0)")
    console.page.screenshot(path=INTO / f"{name}.png")
    print(f"docs/screenshots/{name}.png")


def pictures(browser: Any, service: Service, state: str, training: str) -> None:
    for scheme in ("light", "dark"):
        console = Console(browser, service.url, color_scheme=scheme, viewport=SCREEN)
        page = console.sign_in(service.key)
        page.get_by_role("table").wait_for()
        take(console, f"jobs-{scheme}")
        console.go(f"#/jobs/{state}")
        page.get_by_role("button", name="Preview").first.click()
        page.get_by_label("Predictions over rows").wait_for()
        page.set_viewport_size(TALL)
        take(console, f"job-{scheme}")
        page.set_viewport_size(SCREEN)
        console.go(f"#/jobs/{training}")
        page.get_by_label("Scores over steps").wait_for()
        take(console, f"job-training-{scheme}")
        console.go("#/new?pipeline=machine-state-classification")
        page.get_by_role("button", name="Start the job").wait_for()
        take(console, f"new-{scheme}")
        console.close()
    console = Console(browser, service.url, viewport=PHONE)
    console.sign_in(service.key, f"#/jobs/{state}").get_by_label("Throughput").wait_for()
    take(console, "job-phone")
    console.close()


def main() -> None:
    INTO.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, ray_head(dashboard=True) as head:
        service = Service(Path(folder), head, pipelines=ROOT / "pipelines")
        try:
            service.start()
            state = submit(service, "machine-state-classification")
            training = submit(service, "fine-tuning-omega")
            for one in (state, training):
                assert service.wait(one)["status"] == "COMPLETED"
            submit(service, "knn-fine-tuning-omega")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                pictures(browser, service, state, training)
                browser.close()
        finally:
            aside(service.close)


if __name__ == "__main__":
    main()
