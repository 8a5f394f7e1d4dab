"""How the API serves the console: a built one under its policy, and a page that helps where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from api_lab import Api

from jos.api import console


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "dist"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>JOS</title>")
    (folder / "icon.svg").write_text("<svg/>")
    (folder / "assets" / "index-abc.js").write_text("0")
    (folder / "assets" / "notes.txt").write_text("not to be served")
    (tmp_path / "secret.js").write_text("outside")
    monkeypatch.setattr(console, "BUILT", folder)
    return folder


def test_the_page_may_load_and_ask_this_origin_alone(shared_api: Api, built: Path) -> None:
    anonymous = shared_api.as_(None)
    for path in ("/console", "/console/"):
        page = anonymous.get(path)
        assert page.status_code == 200
        assert page.headers["Content-Type"].startswith("text/html")
        policy = dict(part.split(" ", 1) for part in page.headers["Content-Security-Policy"].split("; "))
        assert policy.pop("require-trusted-types-for") == "'script'"
        assert set(policy.values()) == {"'none'", "'self'"}
        assert {policy[name] for name in ("default-src", "base-uri", "form-action", "frame-ancestors")} == {"'none'"}
        assert page.headers["Cache-Control"] == "no-store"
        assert page.headers["X-Content-Type-Options"] == "nosniff"


def test_assets_are_kept_by_browsers_because_their_names_change(shared_api: Api, built: Path) -> None:
    anonymous = shared_api.as_(None)
    script = anonymous.get("/console/assets/index-abc.js")
    assert script.headers["Content-Type"].startswith("text/javascript")
    assert "immutable" in script.headers["Cache-Control"]
    icon = anonymous.get("/console/icon.svg")
    assert icon.headers["Content-Type"] == "image/svg+xml"
    assert icon.headers["Cache-Control"] == "no-cache"
    assert icon.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/console/assets/no.js",
        "/console/assets/notes.txt",
        "/console/assets/..%2f..%2fsecret.js",
        "/console/..%2fsecret.js",
        "/console/%2e%2e%2fsecret.js",
        "/console/index.html%00.js",
        "/console/" + "a" * 300 + ".js",
    ],
)
def test_nothing_but_its_own_files_is_served(shared_api: Api, built: Path, path: str) -> None:
    answer = shared_api.as_(None).get(path)
    assert answer.status_code == 404
    assert "outside" not in answer.text


def test_a_checkout_without_a_build_says_how_to_make_one(
    shared_api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "BUILT", tmp_path / "none")
    page = shared_api.as_(None).get("/console")
    assert page.status_code == 503
    assert "make console" in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert shared_api.as_(None).get("/console/assets/index.js").status_code == 404
