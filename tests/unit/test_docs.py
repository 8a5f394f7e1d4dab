"""What exists is documented: commands, settings, event types, dependencies; and pages point at what exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from jos.cli import app
from jos.cli_pipelines import pipelines_app
from jos.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("**/*.md"))]


def text(*pages: Path) -> str:
    return "\n".join(page.read_text() for page in pages)


def test_every_command_is_in_the_documentation() -> None:
    names = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    names += [f"pipelines {c.name}" for c in pipelines_app.registered_commands]
    missing = [n for n in names if f"jos {n}" not in text(*PAGES, ROOT / "CHANGELOG.md")]
    assert not missing


def test_every_setting_is_in_the_documentation() -> None:
    page = text(ROOT / "docs" / "settings.md")
    assert [f for f in Settings.model_fields if f"JOS_{f.upper()}" not in page] == []


def test_every_event_type_is_in_the_documentation() -> None:
    source = text(*(ROOT / "jos").rglob("*.py"), *(ROOT / "actors").rglob("*.py"))
    types = set(
        re.findall(
            r'"((?:job|index|inference|input|model|storage|attempt|events|preparation|training|checkpoint|results)[._][a-z_]+)"',
            source,
        )
    )
    types -= {"input_id", "index_id", "job_id", "input_file", "job_failed", "input_progress", "job_folder"}
    types -= {"job.json", "index.html"}
    page = text(ROOT / "docs" / "events.md")
    events = {t for t in types if "." in t or t == "input_started"}
    assert len(events) > 15
    assert sorted(t for t in events if f"`{t}`" not in page) == []


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[<>=;]", d)[0] for d in wanted if not d.startswith(("jos[", "types-"))}
    page = text(ROOT / "docs" / "dependencies.md")
    assert sorted(n for n in names if f"`{n}`" not in page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_point_at_something(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_a_module_that_names_its_tests_names_files_that_exist() -> None:
    missing = []
    for module in [*(ROOT / "jos").rglob("*.py"), *(ROOT / "actors").rglob("*.py")]:
        head = module.read_text()[:1500]
        missing += [
            f"{module.name}: {name}" for name in re.findall(r"tests/[\w/]+\.py", head) if not (ROOT / name).exists()
        ]
    assert missing == []
