"""A day in less than a minute."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from model_server import ModelServer
from outside import until
from program import Running, Setting, leave, running
from summary import Day

ENGINE = PARENT = (0.005, 0.05)
PAUSE = 0.03


@dataclass(frozen=True)
class DaySetting(Setting):
    def model(self) -> ModelServer:
        return ModelServer(ENGINE, PARENT)


async def live(setting: DaySetting, updates: int) -> Day:
    async with running(setting, updates=updates, pause=PAUSE, batch=0.01) as program:
        await until(program.all_arrived, 60 + updates * PAUSE, pause=0.1)
        pool = program.gum.engine.pool
        await leave(program)
        return _seen(program, updates, pool.checkedout())


def _seen(program: Running, updates: int, checked_out: int) -> Day:
    outside = program.outside
    return Day(
        updates=updates,
        observations=outside.sql("select count(*) from observations"),
        propositions=outside.sql("select count(*) from propositions"),
        expected=program.expected(),
        delivered=program.arrived(),
        locked=len(outside.lines("database is locked")),
        complaints=outside.complaints(),
        checked_out=checked_out,
        ended=[record for record in outside.lines("_trigger_") if "sit_state" in vars(record)],
    )


def lived(setting: DaySetting, updates: int) -> Day:
    return asyncio.run(live(setting, updates))
