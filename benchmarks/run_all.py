"""All benchmarks, one after the other: what `make bench` runs. About an hour on two CPUs.

    python -m benchmarks.run_all [--small] [--only NAME ...] [--tables]

Each writes NAME.md, NAME.json and NAME.png into benchmarks/results; their tables are then put into benchmarks/README.md
between its markers, and the text around them stays as it was written. `--tables` only does the last step.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import RESULTS, ROOT, say

NAMES = (
    "dispatch",
    "classify",
    "activity",
    "growth",
    "resume",
    "startup",
    "admission",
    "store",
    "api",
    "console",
    "service",
    "kuberay",
    "knn",
    "train",
    "quality",
    "gpu",  # measures nothing where there is none
)
README = Path(__file__).resolve().parent / "README.md"


def run(name: str, small: bool) -> bool:
    began = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", *(["--small"] if small and name != "startup" else [])]
    command += ["--rounds", "1"] if small and name != "quality" else []
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    say(f"{name}: {'done' if code == 0 else f'failed ({code})'} after {time.monotonic() - began:.0f} s")
    return code == 0


def assemble() -> None:
    """The tables into the README, between `<!-- NAME -->` and `<!-- /NAME -->`."""
    text = README.read_text()
    for name in NAMES:
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        result = RESULTS / f"{name}.md"
        if not (found and closed):
            raise SystemExit(f"benchmarks/README.md lacks its markers for {name}")
        if not result.exists():
            continue
        plot = f"\n\n![{name}](results/{name}.png)" if result.with_suffix(".png").exists() else ""
        text = f"{before}{start}\n\n{result.read_text().strip()}{plot}\n\n{end}{after}"
    README.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="less of everything, one round: do they run at all?")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--tables", action="store_true", help="only put the tables into the README")
    arguments = parser.parse_args()
    names = [] if arguments.tables else [name for name in NAMES if name in arguments.only]
    failed = [name for name in names if not run(name, arguments.small)]
    assemble()
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
