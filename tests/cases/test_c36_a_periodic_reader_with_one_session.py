"""
A background reader keeps one session for ever, and never sees what others have written since.

https://github.com/fastapi/sqlmodel/issues/220. A periodic task must have one session for each round, not one for its
life: then every round sees what was committed before it, and holds no connection between two rounds.
"""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import declarative_base, foreign, relationship, remote
from support import Gate, Item, reset, session_maker

from sa_isolated_tasks import InstancePassedError, TaskScope, isolated_session


class User(declarative_base(metadata=Item.metadata)):
    """A row of the same table; rows whose amount is its id are its reminders."""

    __table__ = Item.__table__

    reminders = relationship(
        "User",
        primaryjoin=lambda: remote(foreign(User.__table__.c.amount)) == User.__table__.c.id,
        uselist=True,
        viewonly=True,
    )


def lazily(session):
    user = session.scalars(sa.select(User).where(User.id == 1)).one()
    session.info["user"] = user  # as the reader's variable in the report: without it a collected instance is read anew
    return user.name, len(user.reminders)


async def read(session):
    """The user's name, and how many reminders there are."""
    return await session.run_sync(lazily)


async def write(Session, number):
    """Another process: renames the user, and adds a reminder."""
    async with Session() as session, session.begin():
        await session.execute(sa.update(Item).where(Item.id == 1).values(name=f"name {number}"))
        session.add(Item(id=number + 2, name=f"reminder {number}", amount=1))


async def rounds(Session, read_once):
    async with Session() as session, session.begin():
        session.add(Item(id=1, name="name 0"))
    seen = [await read_once()]
    for number in (1, 2):
        await write(Session, number)
        seen.append(await read_once())
    return seen


NOTHING_NEW = [("name 0", 0)] * 3
ALL = [("name 0", 0), ("name 1", 1), ("name 2", 2)]


async def test_control_one_session_shows_what_it_saw_first(Session):
    """Plain SQLAlchemy: the rows are read anew, but the instances and collections of the first round stay."""
    async with Session() as session:
        seen = await rounds(Session, lambda: read(session))

    assert seen == NOTHING_NEW


async def test_control_one_transaction_counts_what_it_saw_first(postgresql, make_engine):
    """Plain SQLAlchemy: below the instances, a snapshot of the database does the same even to a bare count."""
    engine = make_engine(postgresql, isolation_level="REPEATABLE READ")
    await reset(engine)
    Session = session_maker(engine)

    async with Session() as session:
        seen = await rounds(Session, lambda: session.scalar(sa.select(sa.func.count(Item.id))))

    assert seen == [1, 1, 1]


async def test_a_unit_that_lives_for_ever_is_no_cure(Session):
    """The package does not hide it: a unit has one session as long as it lives, as the control."""
    is_written, seen = Gate(), []

    async def read_for_ever(session):
        for _ in range(3):
            seen.append(await read(session))
            await is_written.enter()

    async with Session() as session, session.begin():
        session.add(Item(id=1, name="name 0"))
    async with TaskScope(Session, name="c36") as scope:
        handle = scope.spawn(read_for_ever)
        await is_written.arrivals()
        await write(Session, 1)
        is_written.open()
        await handle

    assert seen == NOTHING_NEW


async def test_an_isolated_function_sees_every_round(engine, Session):
    """Each call has a session of its own, so it sees all that was committed before it, and keeps no connection."""
    isolated, held = isolated_session(Session)(read), []

    async def read_once():
        seen = await isolated()
        held.append(engine.pool.checkedout())
        return seen

    assert await rounds(Session, read_once) == ALL
    assert held == [0, 0, 0]


async def test_a_snapshot_lasts_one_unit(postgresql, make_engine):
    """In ``REPEATABLE READ`` too: the transaction ends with its round."""
    engine = make_engine(postgresql, isolation_level="REPEATABLE READ")
    await reset(engine)
    Session = session_maker(engine)

    async with TaskScope(Session, name="c36") as scope:
        seen = await rounds(Session, lambda: scope.spawn(read))

    assert seen == ALL


async def test_a_periodic_unit_spawns_a_unit_for_each_round(engine, Session):
    """A loop may be a unit itself, and leaves its slot and the pool to its rounds: no deadlock with a limit of one."""
    held = []

    async def read_periodically(session):
        async def read_once():
            held.append(engine.pool.checkedout())
            return await scope.spawn(read)

        return await rounds(Session, read_once)

    async with TaskScope(Session, name="c36", limit=1) as scope:
        handle = scope.spawn(read_periodically)

    assert handle.result() == ALL
    assert held == [0, 0, 0]


async def test_a_failed_round_does_not_end_the_next(Session):
    """A round that fails takes its session with it; the next one starts from the database."""
    isolated, attempts = isolated_session(Session), []

    @isolated
    async def read_or_fail(session):
        attempts.append(await read(session))
        if len(attempts) == 2:
            raise ZeroDivisionError

    async def read_once():
        try:
            await read_or_fail()
        except ZeroDivisionError:
            return "failed"
        return attempts[-1]

    assert [ALL[0], "failed", ALL[2]] == await rounds(Session, read_once)


async def test_the_instances_of_a_session_cannot_be_carried_into_the_next_round(Session):
    """What is attached to the reader's session is refused, so that the old identity map does not come back in."""

    async def look_at(session, user):
        return user.name

    async with Session() as session:
        session.add(user := Item(id=1, name="name 0"))
        await session.commit()
        with pytest.raises(InstancePassedError):
            isolated_session(Session)(look_at)(user)
