"""GUM with two triggers that run in the background: this file is the integration."""

from __future__ import annotations

from gum_ai import Gum, Observation, Proposition, Update
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from suggestions import SuggestionEngine

from sa_isolated_tasks import IsolatedFunction, TaskScope, isolated_session

CONFIDENT = 8


class Triggers:
    """
    Put it before GUM in the bases. Whoever uses GUM changes nothing.

    Every observation starts `_trigger_proactive_suggestions`, every confident proposition
    `_trigger_gumbo_suggestions`: when their transaction has committed, each in a session of its own.
    """

    _tasks: TaskScope | None = None

    def start_update_loop(self) -> None:
        if self._tasks is None:
            # By default one at a time on SQLite, which has one writer. These hold no lock while the model thinks.
            self._tasks = TaskScope(self.Session, name="gum", limit=4, drain_timeout=30)
            self._tasks.start()
        super().start_update_loop()

    async def stop_update_loop(self) -> None:
        try:
            await super().stop_update_loop()  # nobody is left who would start a trigger, but triggers
        finally:
            if self._tasks is not None:
                await self._tasks.aclose()
                self._tasks = None

    async def _generate_and_search(self, session: AsyncSession, update: Update) -> list[Proposition]:
        last = await session.scalar(select(func.max(Proposition.id))) or 0
        observations = [row.id for row in session if isinstance(row, Observation)]
        propositions = await super()._generate_and_search(session, update)
        for observation_id in observations:
            self._start(session, self._trigger_proactive_suggestions, observation_id)
        for proposition in propositions:
            if proposition.id > last and (proposition.confidence or 0) >= CONFIDENT:
                self._start(session, self._trigger_gumbo_suggestions, proposition.id)
        return propositions

    def _start(self, session: AsyncSession, trigger: IsolatedFunction[[int], None], row_id: int) -> None:
        self._tasks.spawn_after_commit(session, trigger, row_id)

    @isolated_session(attribute="Session")
    async def _trigger_proactive_suggestions(self, session: AsyncSession, observation_id: int) -> None:
        observation = await session.get_one(Observation, observation_id)
        await self._engine().suggest(session, observation.content, "proactive", f"observation-{observation_id}")

    @isolated_session(attribute="Session")
    async def _trigger_gumbo_suggestions(self, session: AsyncSession, proposition_id: int) -> None:
        proposition = await session.get(Proposition, proposition_id)
        if proposition is None:
            return  # GUM has revised it in the same transaction: another one stands in its place
        about = f"{proposition.text}\n{proposition.reasoning}"
        batch_id = f"proposition-{proposition_id}"
        await self._engine().suggest(session, about, "gumbo", batch_id, trigger_proposition_id=proposition_id)

    def _engine(self) -> SuggestionEngine:
        return SuggestionEngine(self.client, self.model)


class GumWithTriggers(Triggers, Gum):
    """GUM, and suggestions."""
