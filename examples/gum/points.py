"""The acceptance points: each is judged by what was seen from outside."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from gum_ai import Update
from outside import trigger_tasks, until
from program import LateSpawn, Running, Setting, leave, running

from sa_isolated_tasks import SessionPassedError

POINTS = {
    1: "each trigger has a session of its own",
    2: "a trigger finds its row, and does not run if its parent rolled back",
    3: "suggestions that are committed twice in one run end as delivered",
    4: "the tracked set empties by itself: success, error, cancel",
    5: "log lines: start, finish and error, with duration and traceback",
    6: "left in mid-flight, late triggers included: nothing is pending",
    7: "no error or warning of SQLAlchemy, no exception unretrieved",
    8: "the parent's session is refused at the call",
}
_END = re.compile(r"_trigger_\w+\S* (completed in|failed after) \d+\.\d\ds")
_ERROR = re.compile(r"_trigger_\w+\S* failed after \d+\.\d\ds")


@dataclass(frozen=True)
class Finding:
    """*seen* says what it was, for a person."""

    point: int
    holds: bool
    seen: str


async def observe(setting: Setting) -> list[Finding]:
    """A day of five updates: both kinds of suggestions arrive."""
    async with running(setting) as program:
        await until(program.all_arrived, setting.patience)
        findings = [
            *await _tracked(setting, program, "success"),
            *_sessions(program),
            *_rows(program),
            *_lines(program),
        ]
        findings += await _session_is_refused(program)
        await leave(program)
        complaints = program.outside.complaints()
    return [*findings, Finding(7, not complaints, f"{len(complaints)}{_loudest(complaints)}")]


def _loudest(complaints: list[str]) -> str:
    """The error that this is about, if it is among them."""
    lines = [complaint.splitlines()[0] for complaint in complaints]
    lines.sort(key=lambda line: "closed transaction" not in line)
    return f", one is: {lines[0]}" if lines else ""


def _sessions(program: Running) -> Iterator[Finding]:
    users = program.outside.tasks_of_session.values()
    triggers = {name for tasks in users for name in tasks if "_trigger_" in name}
    own = [tasks for tasks in users if len(tasks) == 1 and tasks <= triggers]
    shared = sum(len(tasks) > 1 for tasks in users)
    holds = len(triggers) == len(own) > 0 and not shared
    yield Finding(1, holds, f"{len(triggers)} triggers, {len(own)} sessions of their own, {shared} shared by tasks")


def _rows(program: Running) -> Iterator[Finding]:
    at_start, asked = program.outside.seen_at_start, program.model.asked.count("suggestions")
    seen = f"a second connection saw {min(at_start, default=0)} observations or more when bodies started"
    found = min(at_start, default=0) > 0 and asked == len(at_start)
    yield Finding(2, found, f"{seen}; {asked} of {len(at_start)} found theirs")
    arrived, expected = program.arrived(), program.expected()
    kept = program.outside.sql("select count(*) from suggestions")
    delivered = arrived == kept == expected > 0
    yield Finding(3, delivered, f"{arrived} delivered of {kept} in the table, {expected} expected")


def _lines(program: Running) -> Iterator[Finding]:
    started = len([record for record in program.outside.lines("_trigger_") if " started" in record.getMessage()])
    ended = [record.getMessage() for record in program.outside.records if _END.search(record.getMessage())]
    holds = len(ended) == started - len(trigger_tasks()) > 0
    yield Finding(5, holds, f"{started} started, {len(ended)} ended: {''.join(ended[:1])}")


async def _tracked(setting: Setting, program: Running, after: str) -> list[Finding]:
    await until(lambda: not program.tracked, setting.patience)
    tracked, alive = program.tracked, len(trigger_tasks())
    return [Finding(4, tracked == alive, f"{tracked} tracked, {alive} alive after {after}")]


async def _session_is_refused(program: Running) -> list[Finding]:
    async with program.gum.Session() as session, session.begin():
        try:
            accepted = program.gum._trigger_proactive_suggestions(1, session)  # noqa: SLF001 -- as the fork calls it
        except SessionPassedError as error:
            return [Finding(8, True, str(error).splitlines()[0])]  # noqa: FBT003
    accepted.close()
    return [Finding(8, False, "accepted")]  # noqa: FBT003


async def roll_back(setting: Setting) -> list[Finding]:
    """The model refuses GUM's last question: the parent rolls back, and tries again later."""
    async with running(setting) as program:
        program.model.refused.add("relations")
        await until(lambda: program.outside.lines("Error processing batch"), setting.patience)
        await until(lambda: not trigger_tasks(), setting.patience)
        ran = len(program.outside.seen_at_start)
        kept = program.outside.sql("select count(*) from suggestions")
        await leave(program)
    return [Finding(2, ran == kept == 0, f"parent rolled back: {ran} bodies ran, {kept} suggestions")]


async def fail_and_cancel(setting: Setting) -> list[Finding]:
    """The model refuses what triggers ask; and triggers that wait for the model are cancelled."""
    async with running(setting, updates=1) as program:
        program.model.refused.add("suggestions")
        await until(lambda: program.outside.lines("failed after") and not trigger_tasks(), setting.patience)
        errors = [record for record in program.outside.records if _ERROR.search(record.getMessage())]
        findings = await _tracked(setting, program, "an error")
        program.model.hold("suggestions")
        program.day.update_queue.put_nowait(Update(content="Opens the lid.", content_type="input_text"))
        await until(lambda: len(trigger_tasks()) > 1, setting.patience)
        cancelled = trigger_tasks()
        for task in cancelled:
            task.cancel()
        await asyncio.wait(cancelled)
        findings += await _tracked(setting, program, f"{len(cancelled)} cancelled")
        program.model.release()
        await leave(program)
    holds = bool(errors) and all(record.exc_info and record.exc_info[2] for record in errors)
    return [*findings, Finding(5, holds, f"{errors[0].getMessage() if errors else 'no line'}, with its traceback")]


async def leave_in_mid_flight(setting: Setting) -> list[Finding]:
    """Triggers wait for the model when GUM is left; and then start another trigger."""
    async with running(setting, LateSpawn, updates=1) as program:
        program.model.hold("suggestions")
        await until(lambda: len(trigger_tasks()) > 1, setting.patience)
        pool = program.gum.engine.pool
        leaving = asyncio.create_task(leave(program))
        await until(lambda: program.gum._batch_task is None, setting.patience)  # noqa: SLF001 -- GUM has left, the triggers have not
        program.model.release()
        await leaving
        pending = [task for task in asyncio.all_tasks() - {asyncio.current_task()} if not _is_gums(task)]
        late = program.outside.sql("select count(*) from suggestions where category = 'gumbo' and delivered")
        seen = (
            f"{len(pending)} tasks pending, {pool.checkedout()} connections checked out, {late} of 4 late suggestions"
        )
        return [Finding(6, not pending and not pool.checkedout() and late == 4, seen)]  # noqa: PLR2004 -- as seen


def _is_gums(task: asyncio.Task[object]) -> bool:
    """GUM itself leaves the task that waits for the next update."""
    return getattr(task.get_coro(), "__qualname__", "") == "Queue.get"


PHASES = {observe: (1, 2, 3, 4, 5, 7, 8), roll_back: (2,), fail_and_cancel: (4, 5), leave_in_mid_flight: (6,)}
# Seconds; with the shared session a task may wait for ever, for a session that another one has broken.
LONGEST = 120


def check(setting: Setting) -> list[Finding]:
    """Each phase in a loop of its own, so that what one leaves behind is not seen by the next."""
    return [finding for phase in PHASES for finding in asyncio.run(_in_time(phase, setting))]


async def _in_time(phase: Callable[[Setting], Awaitable[list[Finding]]], setting: Setting) -> list[Finding]:
    try:
        async with asyncio.timeout(LONGEST):
            return await phase(setting)
    except TimeoutError:
        return [Finding(point, False, f"no end in {LONGEST} s") for point in PHASES[phase]]  # noqa: FBT003
