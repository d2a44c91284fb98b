"""
Makes docs/versions.md of the results of test runs: ``python docs/tools/versions.py DIRECTORY``.

A run leaves its result in the directory that SIT_VERSIONS names; see tests/versions.py. One with a failure is refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "versions.md"
TITLES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}

HEAD = """\
# Versions that were tried

When to read this: you want to know whether your versions have been seen together.
Which ranges are supported, and when one is dropped, is in [the promises](../SECURITY.md).

This page is made of the results of test runs, and not by hand:

```sh
SIT_VERSIONS=build/versions nox -s tests
python docs/tools/versions.py build/versions
```

"""


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table(*rows: str) -> str:
    head, *rest = rows
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rest])


def counts(tests: dict[str, int]) -> tuple[int, int]:
    return tests.get("passed", 0), tests.get("skipped", 0)


def page_of(runs: list[dict[str, Any]]) -> str:
    runs = sorted(runs, key=lambda run: (number(run["sqlalchemy"]), number(run["python"])), reverse=True)
    all_runs = table(
        row("Python", "SQLAlchemy", "passed", "skipped", "on", "date"),
        *(row(run["python"], run["sqlalchemy"], *counts(run["tests"]), run["platform"], run["date"]) for run in runs),
    )
    databases = table(
        row("Python", "SQLAlchemy", "database", "driver", "passed", "skipped"),
        *(
            row(run["python"], run["sqlalchemy"], title_of(found["server"]), found["driver"], *counts(found["tests"]))
            for run in runs
            for found in run["databases"]
        ),
    )
    reasons = table(
        row("SQLAlchemy", "Python", "skipped", "why"),
        *(
            row(run["sqlalchemy"], run["python"], count, reason)
            for run in runs
            for reason, count in sorted(run["reasons"].items(), key=lambda pair: -pair[1])
        ),
    )
    packages = ", ".join(sorted({run["package"] for run in runs}))
    return (
        f"{HEAD}## Test runs\n\nOf version {packages}. No test failed in any of them.\n\n{all_runs}\n\n"
        "## Databases and drivers\n\nThe tests of a run that use that database by that driver.\n\n"
        f"{databases}\n\n## What was skipped, and why\n\n{reasons}\n"
    )


def title_of(server: str) -> str:
    name, _, version = server.partition(" ")
    return f"{TITLES[name]} {version}"


def main(directory: Path) -> None:
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.json"))]
    if not runs:
        sys.exit(f"no results in {directory}")
    failed = [f"Python {run['python']}, SQLAlchemy {run['sqlalchemy']}" for run in runs if run["tests"].get("failed")]
    if failed:
        sys.exit(f"runs with failures: {'; '.join(failed)}")
    PAGE.write_text(page_of(runs), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
