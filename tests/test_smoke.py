import sqlalchemy as sa
from sa_isolated_tasks import TaskScope, isolated_session, Outcome
from support import Item

async def test_a_unit_commits_its_row(engine, Session, names_in_table):
    """A unit's row is there after its end."""
    async def add(session, name):
        session.add(Item(name=name))
    async with TaskScope(Session, name="t") as scope:
        handle = scope.spawn(add, "a")
        await handle
    assert ["a"] == await names_in_table(engine)
    assert Outcome.COMMITTED is handle.outcome
