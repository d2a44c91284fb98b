"""
A connection of aiosqlite leaks, and its thread keeps the process alive.

https://github.com/omnilib/aiosqlite/issues/369, /371. Current SQLAlchemy makes that thread a daemon, so there is no
control that would show a hang on every version. A program whose units were cancelled in the middle, and that never
disposes of its engine or does so right after the scope, ends at once, and silently.
"""

from __future__ import annotations

import asyncio
import sys

import pytest

PROGRAM = """
import asyncio, sys
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import sessionmaker
from sa_isolated_tasks import TaskScope

async def hang(session, reached):
    await session.execute(sa.text("select 1"))
    reached.set()
    await asyncio.Event().wait()

async def main(path, dispose):
    engine = create_async_engine("sqlite+aiosqlite:///" + path)
    async with TaskScope(sessionmaker(engine, class_=AsyncSession), name="c28", drain_timeout=0) as scope:
        reached = asyncio.Event()
        scope.spawn(hang, reached)
        await reached.wait()
    if dispose:
        await engine.dispose()

asyncio.run(main(sys.argv[1], sys.argv[2] == "dispose"))
print("end of the program")
"""


@pytest.mark.parametrize("end", ["dispose", "forget"])
async def test_the_process_ends(tmp_path, end):
    """Within a bound, with exit code 0; if it disposes of its engine, without a word on stderr but the log's."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, str(tmp_path / "c28.db"), end),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)

    assert (0, ["end of the program"]) == (process.returncode, out.decode().split("\n")[:-1])
    assert end == "forget" or not err
