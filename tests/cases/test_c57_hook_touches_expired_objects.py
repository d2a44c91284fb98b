"""
A listener on ``after_commit`` reads an attribute of the object that was written, and the whole sync is aborted.

https://github.com/the-momentum/open-wearables/issues/1197. A commit expires what it has written, and no SQL can be
emitted in the hook. Arguments of a unit are taken before the commit, nothing of the parent is read in its hook, and
nothing is raised into its ``commit()``.
"""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import InvalidRequestError
from support import Item

from sa_isolated_tasks import InstancePassedError, TaskScope, UnitEnded, UnitStarted


async def test_control_the_hook_reads_an_expired_attribute(Session, engine, names_in_table):
    """Plain SQLAlchemy: ``commit()`` raises, although the row is committed."""

    async def write():
        async with Session() as session:
            session.add(item := Item(name="a"))
            event.listen(session.sync_session, "after_commit", lambda _: session.expire_all() or item.name)
            await session.commit()

    with pytest.raises(InvalidRequestError, match=r"in 'committed' state|no further SQL"):
        await write()

    assert ["a"] == await names_in_table(engine)


async def test_the_arguments_are_those_of_the_call(Session):
    """A value that is read at the call is there after the commit, and the object stays as the commit left it."""
    got = []

    async def send(session, item_id, name):
        got.append((name, await session.scalar(sa.select(Item.name).where(Item.id == item_id))))

    async with TaskScope(Session, name="c57") as scope, Session() as session:
        session.add(item := Item(name="a"))
        await session.flush()
        scope.spawn_after_commit(session, send, item.id, item.name)
        await session.commit()
        expired = sa.inspect(item).expired

    assert ([("a", "a")], True) == (got, expired)


async def test_the_object_itself_is_refused_at_the_call(Session):
    """It would be expired by the time that the unit runs."""

    async def send(_session, item):
        return item.name

    async with TaskScope(Session, name="c57") as scope, Session() as session:
        session.add(item := Item(name="a"))
        await session.flush()
        with pytest.raises(InstancePassedError):
            scope.spawn_after_commit(session, send, item)
        await session.rollback()


class Broken:
    """A listener that raises at every event."""

    def unit_started(self, event: UnitStarted) -> None:
        raise ValueError(event)

    def unit_ended(self, event: UnitEnded) -> None:
        raise ValueError(event)

    def scope_waiting(self, event: object) -> None:
        raise ValueError(event)


async def test_nothing_is_raised_into_the_commit(Session, engine, names_in_table):
    """A unit that fails, and listeners that fail, are none of the parent's business."""

    async def fail(_session):
        raise ZeroDivisionError

    async with TaskScope(Session, name="c57", listeners=[Broken()]) as scope, Session() as session:
        session.add(Item(name="a"))
        await session.flush()
        handle = scope.spawn_after_commit(session, fail)
        await session.commit()
        session.add(Item(name="b"))
        await session.commit()

    assert ["a", "b"] == await names_in_table(engine)
    assert isinstance(handle.exception(), ZeroDivisionError)
