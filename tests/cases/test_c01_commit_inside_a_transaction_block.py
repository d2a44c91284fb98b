"""
A task commits the session that it was lent, inside its parent's ``begin()`` block; the parent is the one who fails.

https://github.com/sqlalchemy/sqlalchemy/issues/6288. It must be refused to lend the session; a unit of its own may end
its transaction as often as it likes, wherever it was spawned, and nested blocks work in it as they do anywhere.
"""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import InvalidRequestError
from support import Item

from sa_isolated_tasks import Outcome, SessionPassedError, TaskScope, isolated_session

ENDINGS = ["commit", "rollback", "close"]


async def end(session, ending):
    await session.execute(sa.select(Item))
    await getattr(session, ending)()


@pytest.mark.parametrize("ending", ENDINGS)
async def test_control_the_parent_dies_of_what_its_task_did(Session, ending):
    """Plain SQLAlchemy: whichever way the child ends the transaction, the parent's next statement fails."""
    with pytest.raises(InvalidRequestError, match="Can't operate on closed transaction inside context manager"):
        async with Session() as session, session.begin():
            await asyncio.create_task(end(session, ending))
            await session.execute(sa.select(Item))


async def test_control_a_level_that_commits_closes_the_levels_around_it(Session):
    """Plain SQLAlchemy: the shape of the report, a commit inside a savepoint's block."""
    with pytest.raises(InvalidRequestError, match="Can't operate on closed transaction inside context manager"):
        async with Session() as session, session.begin(), session.begin_nested():
            await session.commit()
            await session.execute(sa.select(Item))


@pytest.mark.parametrize("ending", ENDINGS)
async def test_lending_the_session_is_refused_and_the_parent_goes_on(engine, Session, names_in_table, ending):
    """The call fails before anything runs, names the argument, and leaves the parent's transaction as it was."""
    async with TaskScope(Session, name="c01") as scope, Session() as session, session.begin():
        session.add(Item(name="parent"))
        with pytest.raises(SessionPassedError) as refused:
            scope.spawn(end, session, ending)

    assert "end() was given a session (AsyncSession, in a transaction): arg 1" == refused.value.what
    assert "scope.spawn(end, ending)" == refused.value.cure
    assert ["parent"] == await names_in_table(engine)


async def test_calling_an_isolated_function_with_the_session_is_refused(Session):
    """The same holds without a scope, whichever way the argument is passed."""
    isolated = isolated_session(Session)(end)

    async with Session() as session, session.begin():
        with pytest.raises(SessionPassedError, match=r"arg 1\n"):
            isolated(session, "commit")
        with pytest.raises(SessionPassedError, match=r"arg 'ending'\n"):
            isolated(ending=session)
        await session.execute(sa.select(Item))


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_unit_ends_its_own_transaction_inside_the_parents_block(engine, Session, names_in_table, ending):
    """The parent waits for the unit in the middle of its block, and goes on."""
    async with TaskScope(Session, name="c01") as scope, Session() as session, session.begin():
        await session.execute(sa.select(Item))
        handle = scope.spawn(end, ending)
        await handle
        session.add(Item(name="parent"))

    assert {"commit": Outcome.COMMITTED}.get(ending, Outcome.ROLLED_BACK) is handle.outcome
    assert ["parent"] == await names_in_table(engine)


async def test_a_unit_commits_as_often_as_it_likes(engine, Session, names_in_table):
    """A unit holds no block of its own that a second commit could break; the rest is committed on return."""

    @isolated_session(Session)
    async def add_three(session):
        for name in ("first", "second"):
            session.add(Item(name=name))
            await session.commit()
        session.add(Item(name="third"))

    await add_three()

    assert ["first", "second", "third"] == await names_in_table(engine)


async def test_nested_blocks_in_a_unit_leave_the_outer_transaction_open(engine, Session, names_in_table):
    """After the last savepoint's block the unit's transaction goes on, and one that failed takes only its own row."""

    @isolated_session(Session)
    async def nest(session):
        async with session.begin_nested():
            session.add(Item(name="kept"))
            async with session.begin_nested():
                session.add(Item(name="kept too"))
        with pytest.raises(ZeroDivisionError):
            async with session.begin_nested():
                session.add(Item(name="undone"))
                await session.flush()
                raise ZeroDivisionError
        session.add(Item(name="last"))
        return session.in_transaction()

    assert await nest()
    assert ["kept", "kept too", "last"] == await names_in_table(engine)


async def test_a_unit_that_commits_inside_a_savepoint_fails_alone(engine, Session, names_in_table):
    """The error of the report stays in the unit that made the mistake: its parent commits."""

    async def commit_too_early(session):
        async with session.begin_nested():
            await session.commit()
            await session.execute(sa.select(Item))

    async with TaskScope(Session, name="c01") as scope, Session.begin() as session:
        await session.execute(sa.select(Item))
        handle = scope.spawn(commit_too_early)
        with pytest.raises(InvalidRequestError, match="Can't operate on closed transaction"):
            await handle
        session.add(Item(name="parent"))

    assert ["parent"] == await names_in_table(engine)
