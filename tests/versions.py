"""
What a test run has verified, as a file: with ``SIT_VERSIONS=DIRECTORY`` in the environment each run leaves one there.

``SIT_TESTS`` says which tests it was. ``nox -s versions -- DIRECTORY`` makes docs/versions.md of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import sqlalchemy as sa
from databases import NAMES, Databases
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

QUESTIONS = {"sqlite": "select sqlite_version()", "postgresql": "show server_version", "mysql": "select version()"}


def version_or_none(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


async def server_version(url):
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        answer = (await connection.execute(sa.text(QUESTIONS[url.get_backend_name()]))).scalar_one()
    await engine.dispose()
    return str(answer).split("-")[0].split(" ")[0]


def drivers_of(item):
    """The databases that a test uses: by a parameter, or by a fixture of that name."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {
        name for name in NAMES if name in item.fixturenames or name in [p for p in parameters if isinstance(p, str)]
    }


class VersionsReport:
    """Counts the outcomes of a run, in all and for each database."""

    def __init__(self, directory: Path, databases: Databases) -> None:
        self.directory = directory
        self.databases = databases
        self.outcomes: dict[str, str] = {}
        self.reasons: Counter[str] = Counter()
        self.drivers: dict[str, set[str]] = {}

    def pytest_collection_finish(self, session):
        self.drivers = {item.nodeid: drivers_of(item) for item in session.items if hasattr(item, "fixturenames")}

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.outcomes[report.nodeid] = "failed"
        elif report.skipped:
            self.outcomes[report.nodeid] = "skipped"
            self.reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1
        elif report.when == "call":
            self.outcomes.setdefault(report.nodeid, "passed")

    @pytest.hookimpl(tryfirst=True)  # before the servers are closed
    def pytest_sessionfinish(self):
        result = {
            "date": datetime.now(UTC).date().isoformat(),
            "platform": f"{platform.system()} {platform.machine()}",
            "package": version("sa-isolated-tasks"),
            "python": platform.python_version(),
            "sqlalchemy": sa.__version__,
            "greenlet": version("greenlet"),
            "which": os.environ.get("SIT_TESTS", "some"),
            "tests": Counter(self.outcomes.values()),
            "reasons": self.reasons,
            "databases": [self.row(found) for found in self.databases.found if found.url is not None],
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        name = f"python{result['python']}-sqlalchemy{result['sqlalchemy']}-{result['which']}.json"
        target = self.directory / name.replace(" ", "-")
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    def row(self, found):
        driver = found.url.get_driver_name()
        counts = Counter(out for test, out in self.outcomes.items() if found.name in self.drivers.get(test, ()))
        return {
            "server": f"{found.name if found.name in {'mariadb', 'sqlite'} else 'postgresql'} "
            + asyncio.run(server_version(found.url)),
            "driver": f"{driver} {version_or_none(driver)}",
            "tests": counts,
        }
