"""
The body of every unit of the state machine: it follows a program, and keeps the journal that `verdicts.py` judges by.

Nothing here sleeps: who waits, waits for a gate that the machine opens, or for the handle of another unit.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import sys

import sqlalchemy as sa
from programs import Await, End, Finish, How, Odd, Planned, Read, Spawn, Stop, Write
from support import Item

from sa_isolated_tasks import ScopeClosedError, TaskState


class Fate(enum.Enum):
    """Of a transaction, as far as the body knows."""

    OPEN = enum.auto()
    COMMITTED = enum.auto()
    ROLLED_BACK = enum.auto()


class Transaction:
    """One of a unit: *begun* when a statement has come back, *closing* when the body has asked for its end."""

    def __init__(self):
        self.rows = []
        self.begun = False
        self.closing = False
        self.fate = Fate.OPEN


class Unit:
    """One unit as the model knows it. *earlier* are the units that it may await."""

    # The model has the sessions of parents; a unit is passed to its own body, and leaves them alone.
    __isolated_tasks_ignore__ = ("world", "arena", "earlier", "parent")

    def __init__(self, world, arena, program, earlier, timeout):
        self.world = world
        self.arena = arena
        self.program = program
        self.earlier = earlier
        self.timeout = timeout
        self.name = f"u{world.next_number()}"
        self.handle = None
        self.gate = asyncio.Event()
        self.transactions = []
        self.place = None  # in the queue, in the order of spawns and commits
        self.task = None
        self.raised = self.passed_on = None
        self.result = None
        self.awaiting = ()
        self.at_gate = self.giving_up = False
        # In the body, and not waiting for another unit.
        self.executing = False
        # It went on without waiting for its slot, as the package promises to who gives up.
        self.forced = False
        # Somebody awaits it, so it may overtake; and has done so for long enough that it must.
        self.preferred = self.must_be_next = False
        # It was cancelled, and returned all the same.
        self.swallowed = False
        # None, "must" or "may": whether it has to end as cancelled.
        self.cancelled = None
        self.dropped = False
        self.retrieved = self.may_be_retrieved = False
        self.may_hold = False
        self.parent = None
        self.must_see = ()

    def __repr__(self):
        return f"<{self.name} of {self.arena.name}: {self.program}, {self.handle!r}>"

    @property
    def done(self):
        return self.handle.done()

    @property
    def is_queued(self):
        return self.handle.state is TaskState.QUEUED

    @property
    def open_transaction(self):
        last = self.transactions[-1:]
        return last[0] if last and last[0].fate is Fate.OPEN else None

    def transaction(self):
        if self.open_transaction is None:
            self.transactions.append(Transaction())
        return self.transactions[-1]

    def enter(self):
        self.task = asyncio.current_task()
        self.executing = True
        self.arena.entered(self)
        self.world.moved.set()

    def leave(self):
        self.executing = False
        self.world.moved.set()

    @contextlib.contextmanager
    def waiting_for(self, targets):
        self.awaiting, self.executing = targets, False
        self.world.moved.set()
        try:
            yield
        except asyncio.CancelledError:
            self.forced = True
            raise
        finally:
            self.awaiting, self.executing, self.giving_up = (), True, False
            self.arena.check_limit(self)
            self.world.moved.set()


async def follow(session, unit):
    """The body of every unit."""
    unit.enter()
    try:
        if unit.must_see:
            await see(session, unit)
        for step in unit.program.steps:
            if await take(step, session, unit):
                break
        else:
            await finish(session, unit)
        unit.result = unit.name
        return unit.result
    except BaseException as error:
        unit.raised = error
        raise
    finally:
        unit.leave()


async def see(session, unit):
    """What a unit that was spawned after a commit has to find."""
    transaction = unit.transaction()
    query = sa.select(Item.name).where(Item.name.in_(unit.must_see))
    found = set((await session.execute(query)).scalars())
    transaction.begun = True
    if found != set(unit.must_see):
        unit.world.fault(f"{unit} sees {found}, and not {unit.must_see}")


async def take(step, session, unit):
    """One step; true if it is the last."""
    match step:
        case Write():
            await write(session, unit)
        case Read():
            transaction = unit.transaction()
            await session.execute(sa.select(1))
            transaction.begun = True
        case Finish(commits):
            await end_transaction(session, unit, commits=commits)
        case Stop(stubborn):
            await let_go(session, unit)
            return await stop(unit, stubborn)
        case Await(backs, how, careful):
            known = len(unit.earlier)
            targets = [unit.earlier[known - 1 - back] for back in backs if back < known]
            if targets:
                await let_go(session, unit)
                await wait(unit, targets, how, careful)
        case Spawn(program, elsewhere, follow):
            child = spawn(unit, program, elsewhere)
            if child is not None and follow:
                await let_go(session, unit)
                await wait(unit, [child], How.PLAIN, careful=True)
    return False


async def write(session, unit):
    transaction = unit.transaction()
    name = f"{unit.name}.{sum(len(each.rows) for each in unit.transactions)}"
    transaction.rows.append(name)
    session.add(Item(name=name))
    await session.flush()
    transaction.begun = True


async def end_transaction(session, unit, *, commits):
    transaction = unit.open_transaction
    if transaction is not None:
        transaction.closing = commits
    await (session.commit() if commits else session.rollback())
    if transaction is not None:
        transaction.fate = Fate.COMMITTED if commits else Fate.ROLLED_BACK


async def let_go(session, unit):
    """A unit that will wait gives its connection back, or all would be held; on SQLite the lock above all."""
    transaction = unit.open_transaction
    if transaction is not None and not (unit.may_hold and not (transaction.rows and unit.world.has_one_writer)):
        await end_transaction(session, unit, commits=True)
    go_on(unit)


def go_on(unit):
    """
    Unless ``asyncio.wait_for`` has swallowed a cancellation, as it does on Python 3.11 if it comes with the result.

    SQLAlchemy's pool uses it too: there the package itself cannot tell yet that a cancellation was lost.
    """
    if sys.version_info < (3, 12) and unit.task.cancelling():
        raise asyncio.CancelledError


async def stop(unit, stubborn):
    unit.at_gate = True
    unit.world.moved.set()
    try:
        if not unit.world.gates_are_open:
            await unit.gate.wait()
    except asyncio.CancelledError:
        if not stubborn:
            raise
        unit.swallowed = True
        return True
    finally:
        unit.at_gate = False
    return False


async def wait(unit, targets, how, careful):
    """What the others raise must be what their handles say; it goes on if this unit is not careful."""
    targets = tuple(targets) if how in {How.GATHER, How.GATHER_ALL} else (targets[0],)
    for target in targets:
        target.preferred = target.may_be_retrieved = True
    unit.giving_up = how is How.GIVE_UP
    error = None
    with unit.waiting_for(targets):
        try:
            await AWAITS[how](*[target.handle for target in targets])
        except asyncio.CancelledError:
            raise
        except BaseException as raised:
            error = raised
            unit.forced = unit.forced or not all(target.done for target in targets)
    go_on(unit)
    if how is How.PLAIN:
        targets[0].retrieved = True
    if how is How.GIVE_UP and isinstance(error, TimeoutError):
        return
    if error is not None:
        if not any(target.done and error is target.handle.exception() for target in targets):
            unit.world.fault(f"{unit} was given {error!r}, which none of {targets} has raised")
        if not careful:
            unit.passed_on = error
            raise error


async def plain(handle):
    return await handle


async def give_up(handle):
    async with asyncio.timeout(0):
        await handle


async def shield(handle):
    helper = asyncio.ensure_future(handle)
    # Who is cancelled leaves it behind, and asyncio would complain that nobody asks what became of it.
    helper.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.shield(helper)


async def gather(*handles):
    await asyncio.gather(*handles)


async def gather_all(*handles):
    await asyncio.gather(*handles, return_exceptions=True)


AWAITS = {
    How.PLAIN: plain,
    How.GATHER: gather,
    How.GATHER_ALL: gather_all,
    How.WAIT_FOR: lambda handle: asyncio.wait_for(handle, 3600),
    How.SHIELD: shield,
    How.GIVE_UP: give_up,
}


def spawn(unit, program, elsewhere):
    """A child; None where the scope is being left and takes none."""
    arena = unit.world.arenas[1 - unit.arena.index] if elsewhere else unit.arena
    try:
        child = unit.world.spawn(arena, program, unit.earlier)
    except ScopeClosedError as error:
        if arena.leaving is None or (not elsewhere and arena.leaving == "drain"):
            unit.world.fault(f"{unit} could not spawn: {error}")
        return None
    if arena.left:
        unit.world.fault(f"{unit} spawned in a scope that is closed")
    return child


async def finish(session, unit):
    match unit.program.end:
        case End.RAISE:
            raise Planned(unit.name)
        case End.RAISE_ODD:
            raise Odd(unit.name)
        case End.STRAY:
            raise asyncio.CancelledError
        case End.DUPLICATE:
            await write(session, unit)
            session.add(Item(name=unit.open_transaction.rows[-1]))
