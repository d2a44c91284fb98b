"""What was measured on: no name of the machine, and no path on it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import sqlalchemy as sa

from benchmarks import peers
from benchmarks.setup import Setup


def cpu() -> str:
    with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


async def versions(setup: Setup) -> dict[str, str]:
    async with setup.engine.connect() as connection:
        server = (await connection.execute(sa.text("show server_version"))).scalar_one()
    own = {name: version(name) for name in ("sqlalchemy", "greenlet", "asyncpg", "aiosqlite")}
    return {"Python": platform.python_version(), "PostgreSQL": server.split()[0], **own, **peers.versions()}
