"""The model of a scope, and of a session of the code that spawns: what is in them, and what has to come of it."""

from __future__ import annotations

from sqlalchemy import event
from support import Item

from sa_isolated_tasks import TaskScope, TaskState


class Listener:
    """Tells that something has moved."""

    def __init__(self, moved):
        self.unit_started = self.unit_ended = self.scope_waiting = lambda _event: moved.set()


class Arena:
    """A scope and its units, in the order in which they may start."""

    def __init__(self, world, index, limit, on_failure, drain_timeout):
        self.world = world
        self.index = index
        self.limit = limit
        self.on_failure = on_failure
        self.drain_timeout = drain_timeout
        self.units = []
        self.places = 0
        self.leaving = None
        self.left = False
        self.name = "ab"[index]
        self.scope = TaskScope(
            world.session_maker,
            name=self.name,
            limit=limit,
            on_failure=on_failure,
            drain_timeout=drain_timeout,
            listeners=[Listener(world.moved)],
        )
        self.scope.start()

    @property
    def living(self):
        return [unit for unit in self.units if not unit.done]

    def queue(self, unit):
        self.places += 1
        unit.place = self.places

    def entered(self, unit):
        if unit.place is None:
            self.world.fault(f"{unit} runs before its parent has committed")
            return
        overtaken = [
            other
            for other in self.units
            if other.place is not None and other.place < unit.place and other.is_queued and not other.cancelled
        ]
        if overtaken and not unit.preferred:
            self.world.fault(f"{unit} has overtaken {overtaken}, and nobody awaits it")
        skipped = [other for other in self.units if other.must_be_next and other.is_queued and not other.cancelled]
        if skipped and not unit.preferred:
            self.world.fault(f"{unit} has started before {skipped}, which others await")
        self.check_limit(unit)

    def check_limit(self, unit):
        if self.limit is None:
            return
        forced = sum(other.forced for other in self.living)
        executing = [other for other in self.units if other.executing]
        if len(executing) > self.limit + forced:
            self.world.fault(f"with {unit} there are more than {self.limit} bodies at once: {executing}")

    def may_be_full(self):
        """Whether as many slots may be taken as there are, as far as the model can tell."""
        taken = sum(unit.handle.state is TaskState.RUNNING and self.may_have_a_slot(unit) for unit in self.living)
        return self.limit is not None and taken >= self.limit

    def may_have_a_slot(self, unit):
        """Not who waits for a unit that has none."""
        if not unit.awaiting:
            return True
        living = [target for target in unit.awaiting if not target.done]
        return bool(living) and all(
            target.handle.state is TaskState.RUNNING and self.may_have_a_slot(target) for target in living
        )


class Parent:
    """A session of the code that spawns: a frame of units and rows for the root and for each savepoint."""

    def __init__(self, world):
        self.world = world
        self.name = f"p{world.next_number()}"
        self.session = world.session_maker()
        self.written = 0
        self.committing = False
        self.forget()
        event.listen(self.session.sync_session, "after_commit", self.committed)

    def forget(self):
        self.savepoints = []
        self.units = [[]]
        self.rows = [[]]
        self.begun = self.holds_connection = False

    @property
    def waiting(self):
        return [unit for frame in self.units for unit in frame]

    def new_row(self):
        self.begun = self.holds_connection = True
        self.written += 1
        self.rows[-1].append(f"{self.name}.{self.written}")
        self.session.add(Item(name=self.rows[-1][-1]))

    def committed(self, session):
        """As late as the package's own hook, and in the same step of the loop."""
        if session.get_nested_transaction() is None:
            rows = tuple(row for frame in self.rows for row in frame)
            for unit in sorted(self.waiting, key=lambda unit: int(unit.name[1:])):
                unit.must_see = rows
                unit.arena.queue(unit)
            self.world.parent_rows.update(rows)
            self.forget()

    def roll_back(self, depth=0):
        """The frames from *depth* on are gone, and their units dropped."""
        for frame in self.units[depth:]:
            for unit in frame:
                unit.dropped = unit.dropped or not unit.cancelled
        self.units[depth:], self.rows[depth:], self.savepoints[max(depth - 1, 0) :] = [], [], []
        if depth == 0:
            self.forget()

    def release(self, depth):
        self.units[depth - 1 :] = [[unit for frame in self.units[depth - 1 :] for unit in frame]]
        self.rows[depth - 1 :] = [[row for frame in self.rows[depth - 1 :] for row in frame]]
        self.savepoints[depth - 1 :] = []
