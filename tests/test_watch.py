"""What is known of sessions from their own events, on every SQLAlchemy and every database."""

from __future__ import annotations

import gc
import weakref

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session
from support import Item, session_maker

from sa_isolated_tasks import Outcome, _watch
from sa_isolated_tasks._watch import Phase, phase_of, record_of, watch_sessions


@pytest.fixture(autouse=True)
def watched():
    watch_sessions()


def test_watching_twice_is_watching_once(monkeypatch):
    """Every scope and decorator asks for it."""
    seen = []

    def listener(session, _transaction):
        seen.append(session)

    monkeypatch.setattr(_watch, "_LISTENERS", (("after_transaction_create", listener),))
    watch_sessions()
    watch_sessions()
    session = Session()
    with session.begin():
        pass
    event.remove(Session, "after_transaction_create", listener)

    assert seen == [session]


async def test_the_phases_of_a_session(Session):
    """Fresh, open, idle, closed, re-opened, and closed again."""
    session = Session()
    sync = session.sync_session
    phases = [phase_of(sync)]
    for step in ("execute", "commit", "execute", "rollback", "close", "execute", "commit", "close", "close"):
        await getattr(session, step)(*[sa.text("select 1")] * (step == "execute"))
        phases.append(phase_of(sync))

    assert phases == [
        *(Phase.FRESH, Phase.OPEN, Phase.IDLE, Phase.OPEN, Phase.IDLE),
        *(Phase.CLOSED, Phase.REOPENED, Phase.IDLE, Phase.CLOSED, Phase.CLOSED),
    ]


async def test_what_was_begun_without_a_connection(Session):
    """An empty ``begin()`` block is work enough to know that the session is closed afterwards."""
    async with Session() as session, session.begin():
        assert phase_of(session.sync_session) is Phase.OPEN

    assert phase_of(session.sync_session) is Phase.CLOSED
    assert record_of(session.sync_session).outcome is Outcome.NONE


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_expunging_is_not_closing(Session, end):
    """``expunge_all()`` inside of a transaction replaces the identity map, as ``close()`` does."""
    async with Session() as session:
        await session.execute(sa.text("select 1"))
        session.expunge_all()
        await getattr(session, end)()

        assert phase_of(session.sync_session) is Phase.IDLE


async def test_invalidate_closes(Session):
    """It replaces the identity map, too."""
    session = Session()
    await session.execute(sa.text("select 1"))

    await session.invalidate()

    assert phase_of(session.sync_session) is Phase.CLOSED


async def test_outcomes(Session):
    """Of the last transaction, and how many were committed; one without a connection is none."""
    async with Session() as session:
        record = record_of(session.sync_session)
        seen = [(record.outcome, record.commits)]

        for step in ("execute", "commit", "commit", "execute", "rollback", "rollback", "execute", "close"):
            await getattr(session, step)(*[sa.text("select 1")] * (step == "execute"))
            seen.append((record.outcome, record.commits))

    committed, rolled_back = (Outcome.COMMITTED, 1), (Outcome.ROLLED_BACK, 1)
    assert seen == [
        *((Outcome.NONE, 0), (Outcome.NONE, 0), committed, committed, committed),
        *(rolled_back, rolled_back, rolled_back, rolled_back),
    ]


async def test_a_released_savepoint_is_no_commit(Session):
    """Its ``after_commit`` comes, but the outer transaction may still be rolled back."""
    async with Session() as session:
        record = record_of(session.sync_session)
        session.add(Item(name="outer"))
        await session.flush()
        async with session.begin_nested():
            session.add(Item(name="inner"))
        between = (record.outcome, record.commits, record.committed)
        await session.rollback()

    assert between == (Outcome.NONE, 0, False)
    assert (record.outcome, record.commits) == (Outcome.ROLLED_BACK, 0)


async def test_a_savepoint_that_is_rolled_back_ends_nothing(Session):
    """The outer transaction goes on, and is committed."""
    async with Session() as session:
        record = record_of(session.sync_session)
        nested = await session.begin_nested()
        await session.execute(sa.text("select 1"))
        await nested.rollback()
        assert (phase_of(session.sync_session), record.outcome) == (Phase.OPEN, Outcome.NONE)
        await session.execute(sa.text("select 1"))
        await session.commit()

    assert (record.outcome, record.commits) == (Outcome.COMMITTED, 1)


async def test_the_time_with_a_connection_is_counted_once(Session):
    """From the first connection of a transaction to its end, over all transactions."""
    async with Session() as session:
        record = record_of(session.sync_session)
        await session.execute(sa.text("select 1"))
        started = record.held_since
        async with session.begin_nested():
            await session.execute(sa.text("select 1"))
        assert (record.held_since, record.held) == (started, 0.0)
        await session.commit()
        first = record.held
        await session.execute(sa.text("select 1"))
        await session.commit()

    assert 0 < first < record.held


async def test_the_rows_of_a_closed_session_are_not_kept(LiteSession):
    """What is remembered of the identity map is a weak reference."""
    async with LiteSession() as session:
        await session.execute(sa.text("select 1"))
        identity_map = weakref.ref(session.sync_session.identity_map)

    gc.collect()

    assert identity_map() is None
    assert phase_of(session.sync_session) is Phase.CLOSED


async def test_what_becomes_of_info_is_no_matter(sqlite_engine):
    """``info`` is cleared, replaced, or given to another session: what is known of a session stays with it."""
    Session = session_maker(sqlite_engine)
    async with Session() as first:
        await first.execute(sa.text("select 1"))
        record = record_of(first.sync_session)
        async with session_maker(sqlite_engine, info={**first.info})() as second:
            assert phase_of(second.sync_session) is Phase.FRESH
            assert record_of(second.sync_session) is not record
            assert record_of(second.sync_session) is record_of(second.sync_session)

            await second.execute(sa.text("select 1"))
        first.info.clear()
        first.sync_session.info = {}
        assert record_of(first.sync_session) is record
        assert phase_of(first.sync_session) is Phase.OPEN
    assert phase_of(second.sync_session) is Phase.CLOSED


def test_a_session_that_was_at_work_before_is_fresh(sqlite):
    """Nobody has watched it: it is not claimed to be closed, nor to be in use."""
    session = Session()
    session.begin()
    vars(session).pop("_sa_isolated_tasks")

    assert phase_of(session) is Phase.OPEN
    session.close()
    assert phase_of(session) is Phase.FRESH
