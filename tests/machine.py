"""
A small model of the promises, beside the real thing: two scopes on one engine, their units, parents and savepoints.

`World` does what the rules of test_machine.py say, keeps account of what has to follow, and compares. Its checks read
handles, the length of scopes, the pool, and the rows on a connection of its own.
"""

from __future__ import annotations

import asyncio

import sqlalchemy as sa
from bodies import Unit, follow
from programs import awaited_by
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool
from support import Item, session_maker
from verdicts import exception_of, judge, judge_exception, rows_of

from sa_isolated_tasks import NoTransactionError, ScopeClosedError, TaskState

DEADLINE = 30
PARENTS = 2


class Left(Exception):
    """What a scope is left by."""


class World:
    """Everything of one example, in one event loop."""

    def __init__(self, url, has_one_writer, pool_size):
        self.has_one_writer = has_one_writer
        options = {"connect_args": {"timeout": DEADLINE}} if has_one_writer else {}
        self.engine = create_async_engine(
            url,
            poolclass=AsyncAdaptedQueuePool,
            pool_size=pool_size,
            max_overflow=0,
            # Who waits while a connection that is being made is cut off is woken by nothing else: docs/limits.md.
            pool_timeout=DEADLINE / 3,
            **options,
        )
        self.reader = create_async_engine(url, poolclass=NullPool, **options)
        self.session_maker = session_maker(self.engine)
        # One stays for those that come and go, or all would wait for each other, and that is nobody's promise.
        self.holders = pool_size - PARENTS - 1
        self.moved = asyncio.Event()
        self.gates_are_open = False
        self.number = 0
        self.faults = []
        self.units = []
        self.roots = []
        self.parents = []
        self.parent_rows = set()
        self.arenas = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: self.fault(f"to the loop: {context}"))

    def fault(self, text):
        self.faults.append(text)

    def next_number(self):
        self.number += 1
        return self.number

    # What the rules and the bodies do

    def spawn(self, arena, program, earlier, *, timeout=None, parent=None):
        unit = Unit(self, arena, program, earlier, timeout)
        living = [other for other in self.units if other.may_hold and not other.done]
        unit.may_hold = len(living) < self.holders
        spawner = arena.scope.options(name=unit.name, timeout=timeout)
        if parent is None:
            unit.handle = spawner.spawn(follow, unit)
            arena.queue(unit)
        else:
            unit.handle = spawner.spawn_after_commit(parent.session, follow, unit)
            unit.parent = parent
            parent.units[-1].append(unit)
        self.units.append(unit)
        arena.units.append(unit)
        return unit

    def cancel(self, unit):
        was_done, task_is_done = unit.done, unit.task is not None and unit.task.done()
        answer = unit.handle.cancel("by the machine")
        # Asked before, it is on its way to that end.
        if answer == (was_done or (task_is_done and not unit.cancelled)):
            self.fault(f"cancelling {unit} said {answer}")
        self.was_cancelled(unit)

    def was_cancelled(self, unit, how="must"):
        ran_out = unit.task is not None and unit.task.done()
        if not ran_out and unit.handle.state in {TaskState.RUNNING, TaskState.CANCELLED, TaskState.QUEUED}:
            unit.cancelled = unit.cancelled or how

    def cancel_all(self, arena):
        living = arena.living
        arena.scope.cancel("by the machine")
        for unit in living:
            self.was_cancelled(unit)

    async def read(self, parent):
        parent.begun = parent.holds_connection = True
        await parent.session.execute(sa.select(1))

    async def write(self, parent):
        parent.new_row()
        await parent.session.flush()

    def refuse(self, arena, program, earlier, *, timeout, parent):
        """There is no transaction to wait for."""
        try:
            self.spawn(arena, program, earlier, timeout=timeout, parent=parent)
        except NoTransactionError:
            return
        self.fault("a unit waits for the commit of no transaction")

    async def savepoint(self, parent):
        parent.savepoints.append(await parent.session.begin_nested())
        parent.units.append([])
        parent.rows.append([])
        parent.begun = True

    async def end_savepoint(self, parent, depth, *, releases):
        savepoint = parent.savepoints[depth - 1]
        await (savepoint.commit() if releases else savepoint.rollback())
        parent.release(depth) if releases else parent.roll_back(depth)

    async def commit(self, parent):
        """With savepoints still open: they are released."""
        waiting = parent.waiting
        if parent.begun:
            parent.new_row()
        await parent.session.commit()
        parent.forget()
        self.expect_not_waiting(waiting)

    async def roll_back(self, parent):
        await parent.session.rollback()
        parent.roll_back()

    async def close(self, parent):
        await parent.session.close()
        parent.roll_back()
        self.parents.remove(parent)

    def expect_not_waiting(self, units):
        for unit in units:
            if unit.handle.state is TaskState.WAITING:
                self.fault(f"{unit} still waits, though its parent has committed")

    # Waiting until nothing moves

    async def settle(self):
        """Until every unit waits: for a gate, for another unit, for a slot where none is free, or for a commit."""
        while not all(self.is_blocked(unit) for unit in self.units if not unit.done):
            self.moved.clear()
            await self.moved.wait()

    def stuck(self):
        """For the report: whoever should go on, and where it is."""
        living = [unit for unit in self.units if not unit.done]
        units = [unit for unit in living if not self.is_blocked(unit)] or living
        return f"{units}, {[unit.task for unit in units]}, {self.engine.pool.status()}"

    def is_blocked(self, unit):
        if unit.handle.state is TaskState.WAITING:
            return True
        if unit.is_queued and unit.task is None and not unit.cancelled:
            return unit.arena.may_be_full()
        if unit.cancelled or unit.giving_up or unit.timeout == 0:
            return False
        if unit.awaiting:
            return any(not target.done for target in unit.awaiting) or unit.arena.may_be_full()
        return unit.at_gate and not (unit.gate.is_set() or self.gates_are_open)

    async def run_out(self):
        """Everything is let go, and both scopes have to be quiet."""
        self.open_gates()
        while any(not unit.done and unit.handle.state is not TaskState.WAITING for unit in self.units):
            for arena in self.arenas:
                await arena.scope.drain()
        self.gates_are_open = False

    async def drain_without_patience(self, arena):
        living = [unit for unit in arena.living if unit.handle.state is not TaskState.WAITING]
        try:
            await arena.scope.drain(timeout=0)
        except TimeoutError:
            if not living:
                self.fault(f"{arena.scope} is not quiet, but none of its units lives")

    def open_gates(self):
        self.gates_are_open = True
        for unit in self.units:
            unit.gate.set()

    def parents_in_the_way(self):
        """Who waits for a unit that waits for a commit would never end."""
        waiting = {unit for parent in self.parents for unit in parent.waiting}
        return any(waiting.intersection(awaited_by(root.program, root.earlier)) for root in self.roots)

    # Leaving

    async def leave(self, arena, *, by_exception):
        arena.leaving = "exception" if by_exception else "drain" if arena.drain_timeout is None else "timeout"
        if arena.leaving == "drain":
            self.open_gates()
        waiting = [unit for unit in arena.living if unit.handle.state is TaskState.WAITING]
        for unit in arena.living:
            if arena.leaving == "exception":
                self.was_cancelled(unit)
        group = await self.leaving(arena)
        self.gates_are_open = False
        arena.left = True
        for unit in waiting:
            unit.dropped = True
        self.check_left(arena, group)

    async def leaving(self, arena):
        """What comes out: the failures."""
        if arena.leaving == "exception":
            error = Left()
            if await arena.scope.__aexit__(Left, error, None):
                self.fault("the scope swallowed what it was left by")
            return None
        try:
            await arena.scope.aclose()
        except BaseExceptionGroup as group:
            return group
        return None

    def check_left(self, arena, group):
        if arena.living or len(arena.scope):
            self.fault(f"left, and alive: {arena.living}, {len(arena.scope)}")
        if not all(unit.task is None or unit.task.done() for unit in arena.units):
            self.fault(f"tasks are left: {arena.units}")
        try:
            arena.scope.spawn(follow, None)
            self.fault(f"{arena.name} is left, and takes units")
        except ScopeClosedError:
            pass
        if arena.leaving != "exception":
            self.check_group(arena, group)
        for unit in arena.units:
            judge_exception(unit)

    def check_group(self, arena, group):
        failed = [unit for unit in arena.units if unit.handle.state is TaskState.FAILED]
        raised = [] if group is None else [id(error) for error in group.exceptions]
        wanted = [] if arena.on_failure == "log" else failed
        must = [id(exception_of(unit)) for unit in wanted if not (unit.retrieved or unit.may_be_retrieved)]
        may = [id(exception_of(unit)) for unit in wanted if not unit.retrieved]
        if not set(must) <= set(raised) <= set(may):
            self.fault(f"leaving raised {group!r}; failed: {failed}")

    async def check_tasks(self):
        """A helper task of a unit, a branch of a ``gather``, ends when what it awaits has ended."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    async def give_up(self):
        """Something is wrong already: no checks, but the next example begins with nothing left."""
        for arena in self.arenas:
            await arena.scope.__aexit__(Left, Left(), None)
        for parent in self.parents:
            await parent.session.close()

    async def dispose(self):
        await self.engine.dispose()
        await self.reader.dispose()

    # Checks

    def check(self):
        """What holds between any two steps."""
        waiting = {unit for parent in self.parents for unit in parent.waiting}
        for unit in self.units:
            state = unit.handle.state
            if (state is TaskState.DROPPED) != unit.dropped:
                self.fault(f"{unit} should be {'dropped' if unit.dropped else state}")
            if (state is TaskState.WAITING) != (unit in waiting and not unit.done):
                self.fault(f"{unit} should {'' if unit in waiting else 'not '}wait")
        for arena in self.arenas:
            living = {unit.handle for unit in arena.living}
            if len(arena.scope) != len(living) or set(arena.scope) != living:
                self.fault(f"{arena.scope} has {list(arena.scope)}, and not {living}")
        held = sum(parent.holds_connection for parent in self.parents)
        busy = sum(unit.handle.state is TaskState.RUNNING for unit in self.units)
        if not held <= self.engine.pool.checkedout() <= held + busy:
            self.fault(f"{self.engine.pool.status()}; parents hold {held}, {busy} units run")
        if self.faults:
            raise AssertionError("\n".join(self.faults))

    async def rows(self):
        """As another connection sees them, when nothing has moved meanwhile: `is_blocked` cannot know all slots."""
        self.moved.set()
        while self.moved.is_set():
            await self.settle()
            self.moved.clear()
            async with self.reader.connect() as connection:
                rows = set((await connection.execute(sa.select(Item.name))).scalars())
        self.mark_preferred()
        return rows

    def mark_preferred(self):
        """Who is awaited by now has to start before the others; a moment ago it may have been too late for that."""
        for unit in self.units:
            for target in unit.awaiting if not unit.done else ():
                target.must_be_next = target.is_queued

    async def check_settled(self):
        """And what holds when nothing moves: the rows, and whose the connections are."""
        rows = await self.rows()
        for unit in self.units:
            judge(unit)
        expected = self.parent_rows.union(*[rows_of(unit) for unit in self.units])
        if rows != expected:
            self.fault(f"rows that nobody has committed: {rows - expected}; lost: {expected - rows}")
        held = sum(parent.holds_connection for parent in self.parents)
        held += sum(unit.open_transaction is not None for unit in self.units if not unit.done)
        if self.engine.pool.checkedout() != held:
            self.fault(f"{self.engine.pool.status()}; {held} are held")
        self.check()
