"""
What the units of the state machine do: programs, and a body that follows one and keeps a journal.

The journal is what `verdicts.py` judges the package by. Nothing here sleeps: who waits, waits for a gate that the
machine opens, or for the handle of another unit.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from dataclasses import dataclass

import sqlalchemy as sa
from support import Item

from sa_isolated_tasks import ScopeClosedError, TaskState


class Planned(Exception):
    """What a unit raises when its program says so."""


class Odd(BaseException):
    """The same, past every ``except Exception``."""


class End(enum.Enum):
    """How a program ends."""

    RETURN = enum.auto()
    RAISE = enum.auto()
    RAISE_ODD = enum.auto()
    STRAY = enum.auto()
    """A CancelledError, though nobody has cancelled."""
    DUPLICATE = enum.auto()
    """It returns, and the commit fails."""


class How(enum.Enum):
    """How a handle is awaited."""

    PLAIN = enum.auto()
    GATHER = enum.auto()
    GATHER_ALL = enum.auto()
    WAIT_FOR = enum.auto()
    SHIELD = enum.auto()
    GIVE_UP = enum.auto()


@dataclass(frozen=True)
class Write:
    """Inserts a row."""


@dataclass(frozen=True)
class Read:
    """Begins a transaction without a lock."""


@dataclass(frozen=True)
class Finish:
    """Ends the transaction in the middle of the body."""

    commits: bool


@dataclass(frozen=True)
class Stop:
    """Waits for the gate of the unit; *stubborn*: swallows a cancellation there, and returns."""

    stubborn: bool


@dataclass(frozen=True)
class Await:
    """Awaits handles, counted back from the last spawn before this unit's; *careful*: catches what they raise."""

    backs: tuple[int, ...]
    how: How
    careful: bool


@dataclass(frozen=True)
class Spawn:
    """Spawns another unit, in the other scope if *elsewhere*, and awaits it if *follow*."""

    program: Program
    elsewhere: bool
    follow: bool


@dataclass(frozen=True)
class Program:
    """Steps one after the other, and an end."""

    steps: tuple[object, ...]
    end: End


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
        self.preferred = False
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


async def stop(unit, stubborn):
    unit.at_gate = True
    unit.world.moved.set()
    try:
        if not unit.world.gates_are_open:
            await unit.gate.wait()
    except asyncio.CancelledError:
        if not stubborn:
            raise
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
    if unit.task.cancelling():  # `wait_for` of Python 3.11 swallows it, and a program with it would go on for ever
        raise asyncio.CancelledError
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


def awaited_by(program, earlier):
    """The units that a program awaits, or one that it spawns."""
    known, found = len(earlier), set()
    for step in program.steps:
        if isinstance(step, Await):
            found.update(earlier[known - 1 - back] for back in step.backs if back < known)
        elif isinstance(step, Spawn):
            found |= awaited_by(step.program, earlier)
    return found
