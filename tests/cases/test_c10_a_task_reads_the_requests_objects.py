"""
A task reads attributes of the request's objects after the request's session has closed, and so does its error handler.

https://github.com/bagofwords1/bagofwords/pull/263. An instance that cannot be read in the task must be refused at the
call, with its key as the cure; what repairs the row after a failure must have a fresh session.
"""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy.orm.exc import DetachedInstanceError
from support import Item, session_maker

from sa_isolated_tasks import InstancePassedError, Outcome, TaskScope, isolated_session


async def add_row(Session, name="in progress"):
    async with Session() as session, session.begin():
        session.add(Item(id=1, name=name))


async def load_expired(Session):
    """What a request leaves behind: loaded, expired by the commit, detached by the end of the session."""
    async with Session() as session:
        item = await session.get(Item, 1)
        await session.commit()
    return item


async def run_agent(session, item):
    return item.id


async def test_control_the_error_handler_fails_like_the_task(engine, Session, names_in_table):
    """Plain SQLAlchemy: the task fails, its handler fails with the same error, and the row stays as it was."""
    await add_row(Session)
    item = await load_expired(Session)

    async def run():
        try:
            return item.id
        except DetachedInstanceError:
            async with Session() as session, session.begin():
                await session.execute(sa.update(Item).where(Item.id == item.id).values(name="failed"))

    with pytest.raises(DetachedInstanceError, match="attribute refresh operation cannot proceed"):
        await asyncio.create_task(run())

    assert ["in progress"] == await names_in_table(engine)


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda item: item, id="itself"),
        pytest.param(lambda item: [item], id="list"),
        pytest.param(lambda item: {"completion": (item,)}, id="nested"),
        pytest.param(lambda item: lambda: item.id, id="closure"),
    ],
)
async def test_an_expired_instance_is_refused(LiteSession, wrap):
    """Wherever it is in the arguments, the call fails and not the task."""
    await add_row(LiteSession)
    argument = wrap(await load_expired(LiteSession))

    async with TaskScope(LiteSession, name="c10") as scope:
        with pytest.raises(InstancePassedError, match="an instance of Item that is detached and expired: arg 1"):
            scope.spawn(run_agent, argument)

        assert 0 == len(scope)


async def test_an_instance_of_an_open_session_is_refused(LiteSession):
    """It reads well now, and loads through the request's session later: the cure is its key."""
    await add_row(LiteSession)
    isolated = isolated_session(LiteSession)(run_agent)

    async with LiteSession() as session:
        item = await session.get(Item, 1)
        with pytest.raises(InstancePassedError, match="attached to another session") as refused:
            isolated(item)

    assert refused.value.cure.startswith("isolated(item.id)")


async def test_a_closure_over_an_instance_is_refused(LiteSession):
    """The shape of the report: the task's function itself has caught the object."""
    await add_row(LiteSession)
    item = await load_expired(LiteSession)

    async def run(session):
        return item.id

    async with TaskScope(LiteSession, name="c10") as scope:
        with pytest.raises(InstancePassedError, match="closure 'item'"):
            scope.spawn(run)


async def test_instances_that_can_be_read_pass(sqlite_engine, LiteSession):
    """A new instance, and one that was detached with its values, belong to nobody: a unit may add and read them."""
    await add_row(LiteSession)
    loaded = await load_expired(session_maker(sqlite_engine, expire_on_commit=False))

    async def rename(session, item, other):
        session.add(item)
        return (await session.merge(other)).name

    name = await isolated_session(LiteSession)(rename)(Item(name="new"), loaded)

    assert "in progress" == name


async def test_a_failure_is_recorded_in_a_fresh_session(engine, Session, names_in_table):
    """The failed unit has closed its session by the time its failure is seen, and its half of the work is undone."""
    await add_row(Session)

    async def run(session, item_id):
        item = await session.get(Item, item_id)
        item.name = "half done"
        await session.flush()
        raise ZeroDivisionError

    async def mark_failed(session, item_id):
        item = await session.get(Item, item_id)
        item.name += ", failed"

    async with TaskScope(Session, name="c10") as scope:
        agent = scope.spawn(run, 1)
        with pytest.raises(ZeroDivisionError):
            await agent
        await scope.spawn(mark_failed, 1)

    assert Outcome.ROLLED_BACK is agent.outcome
    assert ["in progress, failed"] == await names_in_table(engine)
