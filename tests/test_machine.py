"""
Any order of spawns, waits, failures, cancellations, commits, savepoints and exits, checked against a model.

``SIT_STEPS=short`` runs few steps, the same in each run.
``SIT_STEPS=long python -m pytest -s tests/test_machine.py`` runs new ones for a quarter of an hour or so, and prints
how many.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from machine import DEADLINE, PARENTS, World
from model import Arena, Parent
from programs import Await, End, Finish, How, Program, Read, Spawn, Stop, Write
from sqlalchemy.ext.asyncio import create_async_engine
from support import Item, reset

IS_LONG = os.environ.get("SIT_STEPS") == "long"

SIMPLE = st.one_of(
    st.just(Write()),
    st.just(Read()),
    st.builds(Finish, commits=st.booleans()),
    st.builds(Stop, stubborn=st.booleans()),
    st.builds(
        Await,
        backs=st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple),
        how=st.sampled_from(How),
        careful=st.booleans(),
    ),
)
ENDS = st.sampled_from([End.RETURN] * 4 + list(End))


def programs(step, longest):
    return st.builds(Program, steps=st.lists(step, max_size=longest).map(tuple), end=ENDS)


PROGRAMS = programs(
    SIMPLE | st.builds(Spawn, program=programs(SIMPLE, 3), elsewhere=st.booleans(), follow=st.booleans()), 5
)
SEVERAL = st.lists(PROGRAMS, min_size=1, max_size=4)
TIMEOUTS = st.sampled_from([None, None, None, 3600, 0])
LIMITS = st.sampled_from([1, 2, 3, None])
SCOPES = {"limit": LIMITS, "on_failure": st.sampled_from(["log", "raise"]), "drain_timeout": st.sampled_from([None, 0])}
UNCOUNTED = {"begin", "check", "check tasks", "give up", "dispose"}
WHICH = st.integers(0, 1)
BACK = st.integers(0, 8)


class Machine(RuleBasedStateMachine):
    """The rules; what they draw depends on the rules before, and never on how far the units have come."""

    # Of the class that is made for one run.
    steps: Counter
    url: object
    has_one_writer: bool

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.world = None

    def run(self, name, action, *arguments, **options):
        """One step, which has to come to an end."""
        self.steps[name] += name not in UNCOUNTED

        async def bounded():
            stuck = []
            timer = asyncio.get_running_loop().call_later(DEADLINE * 0.9, lambda: stuck.append(self.world.stuck()))
            try:
                async with asyncio.timeout(DEADLINE):
                    result = action(*arguments, **options)
                    return await result if asyncio.iscoroutine(result) else result
            except TimeoutError:
                raise AssertionError(f"{name} has not come to an end: {stuck}") from None
            finally:
                timer.cancel()

        return self.runner.run(bounded())

    @initialize(
        pool_size=st.sampled_from([PARENTS + 1, PARENTS + 2]),
        first=st.fixed_dictionaries(SCOPES),
        second=st.fixed_dictionaries(SCOPES),
    )
    def begin(self, pool_size, first, second):
        async def begin():
            self.world = World(self.url, self.has_one_writer, pool_size)
            async with self.world.reader.begin() as connection:
                await connection.execute(Item.__table__.delete())
            self.world.arenas = [Arena(self.world, index, **each) for index, each in enumerate((first, second))]

        self.run("begin", begin)

    # Units

    @rule(which=WHICH, several=SEVERAL, timeout=TIMEOUTS)
    def spawn(self, which, several, timeout):
        world = self.world
        for program in several:
            unit = self.run("spawn", world.spawn, world.arenas[which], program, tuple(world.roots), timeout=timeout)
            world.roots.append(unit)

    @precondition(lambda self: self.world.roots)
    @rule(back=BACK)
    def open_gate(self, back):
        self.run("open gate", self.root(back).gate.set)

    @precondition(lambda self: self.world.roots)
    @rule(back=BACK)
    def cancel(self, back):
        self.run("cancel", self.world.cancel, self.root(back))

    @rule(which=WHICH)
    def cancel_scope(self, which):
        self.run("cancel scope", self.world.cancel_all, self.world.arenas[which])

    def root(self, back):
        return self.world.roots[-1 - back % len(self.world.roots)]

    # Parents

    @precondition(lambda self: len(self.world.parents) < PARENTS)
    @rule()
    def open_parent(self):
        self.world.parents.append(self.run("open parent", Parent, self.world))

    def parent(self, which):
        return self.world.parents[which % len(self.world.parents)]

    @precondition(lambda self: self.world.parents)
    @rule(which=WHICH)
    def read_in_parent(self, which):
        self.run("read in parent", self.world.read, self.parent(which))

    @precondition(lambda self: self.world.parents and not self.has_one_writer)
    @rule(which=WHICH)
    def write_in_parent(self, which):
        self.run("write in parent", self.world.write, self.parent(which))

    @precondition(lambda self: self.world.parents)
    @rule(which=WHICH)
    def savepoint(self, which):
        self.run("savepoint", self.world.savepoint, self.parent(which))

    @precondition(lambda self: self.world.parents)
    @rule(which=WHICH, scope=WHICH, several=SEVERAL, timeout=TIMEOUTS)
    def spawn_after_commit(self, which, scope, several, timeout):
        world, parent = self.world, self.parent(which)
        for program in several:
            spawn = world.spawn if parent.begun else world.refuse
            arguments = spawn, world.arenas[scope], program, tuple(world.roots)
            unit = self.run("spawn after commit", *arguments, timeout=timeout, parent=parent)
            if unit is not None:
                world.roots.append(unit)

    @precondition(lambda self: self.world.parents)
    @rule(which=WHICH, scope=WHICH, several=SEVERAL, releases=st.sampled_from([True, False, None]))
    def spawn_in_savepoint(self, which, scope, several, releases):
        """As the rules around this one might come to do it; all of them together are rare."""
        parent = self.parent(which)
        self.savepoint(which)
        self.spawn_after_commit(which, scope, several, None)
        if releases is not None:
            depth = len(parent.savepoints)
            self.run("end savepoint", self.world.end_savepoint, parent, depth, releases=releases)

    @precondition(lambda self: any(parent.savepoints for parent in self.world.parents))
    @rule(which=WHICH, depth=st.integers(0, 3), releases=st.booleans())
    def end_savepoint(self, which, depth, releases):
        parents = [parent for parent in self.world.parents if parent.savepoints]
        parent = parents[which % len(parents)]
        depth = 1 + depth % len(parent.savepoints)
        self.run("end savepoint", self.world.end_savepoint, parent, depth, releases=releases)

    @precondition(lambda self: self.world.parents)
    @rule(which=WHICH)
    def commit(self, which):
        self.run("commit", self.world.commit, self.parent(which))

    @precondition(lambda self: self.world.parents)
    @rule(which=WHICH)
    def roll_back(self, which):
        self.run("roll back", self.world.roll_back, self.parent(which))

    @precondition(lambda self: self.world.parents)
    @rule(which=WHICH)
    def close_parent(self, which):
        self.run("close parent", self.world.close, self.parent(which))

    # Time, and scopes

    @rule(turns=st.integers(1, 5), drained=st.sampled_from([None, 0, 1]))
    def turn(self, turns, drained):
        async def turn():
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run("turn", turn)
        if drained is not None:
            self.run("drain without patience", self.world.drain_without_patience, self.world.arenas[drained])

    @rule(runs_out=st.sampled_from([False, False, True]))
    def settle(self, runs_out):
        if runs_out:
            self.clear_the_way()
            self.run("run out", self.world.run_out)
        else:
            self.run("settle", self.world.settle)
        self.run("check", self.world.check_settled)

    @rule(which=WHICH, by_exception=st.booleans(), options=st.fixed_dictionaries(SCOPES))
    def leave_and_open_another(self, which, by_exception, options):
        self.leave(which, by_exception=by_exception)
        self.world.arenas[which] = self.run("open scope", Arena, self.world, which, **options)

    def leave(self, which, *, by_exception):
        arena = self.world.arenas[which]
        if not by_exception and arena.drain_timeout is None:
            self.clear_the_way()
        self.run("leave", self.world.leave, arena, by_exception=by_exception)

    def clear_the_way(self):
        if self.world.parents_in_the_way():
            for parent in self.world.parents:
                self.run("roll back", self.world.roll_back, parent)

    @invariant()
    def model_and_package_agree(self):
        if self.world is not None:
            self.world.check()

    def teardown(self):
        """Everything ends, and nothing is left."""
        try:
            if self.world is not None:
                self.end()
        finally:
            self.runner.close()

    def end(self):
        world = self.world
        try:
            if world.faults:
                self.run("give up", world.give_up)
                return
            self.settle(runs_out=True)
            for which in (0, 1):
                self.leave(which, by_exception=False)
            for parent in list(world.parents):
                self.run("close parent", world.close, parent)
            self.run("check tasks", world.check_tasks)
            self.run("check", world.check_settled)
        finally:
            self.run("dispose", world.dispose)


PROFILE = (
    settings(max_examples=4000, stateful_step_count=60, phases=[Phase.generate, Phase.shrink])
    if IS_LONG
    else settings(max_examples=15, stateful_step_count=40, derandomize=True)
)
PROFILE = settings(PROFILE, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def quiet_log():
    """The failures are planned; pytest would keep a record of each of them."""
    logger = logging.getLogger("sa_isolated_tasks")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.fixture(params=["sqlite", "asyncpg"])
async def machine(request):
    """The machine on a database with an empty table."""
    database = request.getfixturevalue(request.param)
    engine = create_async_engine(database.url)
    await reset(engine)
    await engine.dispose()
    attributes = {"url": database.url, "has_one_writer": database.has_one_writer, "steps": Counter()}
    return type("Machine", (Machine,), attributes)


# A connection that is cut off while it is being made is left to the collector by SQLAlchemy 2.0.0.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <(socket|function _SelectorTransport|function Connection):"
    "pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.usefixtures("quiet_log")
@pytest.mark.timeout(0 if IS_LONG else 300)
def test_any_order_of_events_keeps_the_promises(machine):
    """Whatever happens in whatever order: it ends, and model, handles, rows and pool agree after each step."""
    run_state_machine_as_test(machine, settings=PROFILE)

    print(f"{machine.steps.total()} steps: {dict(machine.steps.most_common())}")
    assert machine.steps["leave"] > 0
