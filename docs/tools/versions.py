"""
Makes docs/versions.md of the results of test runs: ``nox -s versions -- DIRECTORY``.

A run leaves its result in the directory that SIT_VERSIONS names; see tests/versions.py. One with a failure is refused,
and so is a directory in which one of those that are expected is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "versions.md"
TITLES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}

HEAD = """\
# Versions that were tried

When to read this: you want to know whether your versions have been seen together.
Which ranges are supported, and when one is dropped, is in [what is promised across versions](../SECURITY.md).

This page is made of the results of test runs, and not by hand:

```sh
export CI=1 SIT_VERSIONS=build/versions
nox -s tests lowest loops
nox -s versions -- build/versions
```

"""
WHICH = """\
*all* are all tests. *quick* leaves out those that have to wait, for a server that falls silent or a program that ends.
*core* are those of units and scopes, with the lowest versions of everything that the package depends on.
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
        row("Python", "SQLAlchemy", "greenlet", "tests", "passed", "skipped", "on", "date"),
        *(
            row(
                *(run[key] for key in ("python", "sqlalchemy", "greenlet", "which")),
                *counts(run["tests"]),
                run["platform"],
                run["date"],
            )
            for run in runs
        ),
    )
    databases = table(
        row("Python", "SQLAlchemy", "tests", "database", "driver", "passed", "skipped"),
        *(
            row(
                run["python"],
                run["sqlalchemy"],
                run["which"],
                title_of(found["server"]),
                found["driver"],
                *counts(found["tests"]),
            )
            for run in runs
            for found in run["databases"]
        ),
    )
    reasons = table(
        row("SQLAlchemy", "Python", "tests", "skipped", "why"),
        *(
            row(run["sqlalchemy"], run["python"], run["which"], count, reason)
            for run in runs
            for reason, count in sorted(run["reasons"].items(), key=lambda pair: -pair[1])
        ),
    )
    packages = ", ".join(sorted({run["package"] for run in runs}))
    return (
        f"{HEAD}## Test runs\n\nOf version {packages}. No test failed in any of them.\n{WHICH}\n{all_runs}\n\n"
        "## Databases and drivers\n\nThe tests of a run that use that database by that driver.\n\n"
        f"{databases}\n\n## What was skipped, and why\n\n{reasons}\n"
    )


def title_of(server: str) -> str:
    name, _, version = server.partition(" ")
    return f"{TITLES[name]} {version}"


def is_of(run: dict[str, Any], wanted: str, exact: set[str]) -> bool:
    """*wanted* is PYTHON/SQLALCHEMY/TESTS; a SQLAlchemy that ends in a star is one of those that are not *exact*."""
    python, sqlalchemy, which = wanted.split("/")
    fits = run["sqlalchemy"] == sqlalchemy or (
        fnmatch(run["sqlalchemy"], sqlalchemy) and run["sqlalchemy"] not in exact
    )
    return fits and run["python"].startswith(f"{python}.") and run["which"] == which


def main(directory: Path, wanted: list[str]) -> None:
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.json"))]
    failed = [f"Python {run['python']}, SQLAlchemy {run['sqlalchemy']}" for run in runs if run["tests"].get("failed")]
    if failed:
        sys.exit(f"runs with failures: {'; '.join(failed)}")
    exact = {name.split("/")[1] for name in wanted}
    missing = [name for name in wanted if not any(is_of(run, name, exact) for run in runs)]
    if missing:
        sys.exit(f"no results in {directory} of {', '.join(missing)}")
    PAGE.write_text(page_of(runs), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("wanted", nargs="+", metavar="PYTHON/SQLALCHEMY/TESTS")
    arguments = parser.parse_args()
    main(arguments.directory, arguments.wanted)
