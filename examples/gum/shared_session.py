"""The negative control: the same program, but its triggers get the parent's session, as in the fork of GUM."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from gum_ai import Gum
from sqlalchemy.ext.asyncio import AsyncSession
from with_triggers import Triggers

LOGGER = logging.getLogger("sa_isolated_tasks")  # where the checker looks
Trigger = Callable[[int, AsyncSession], Coroutine[Any, Any, None]]


class SharedSession(Triggers):
    """Only how a trigger starts, and with which session, is different."""

    def start_update_loop(self) -> None:
        self._tasks = set[asyncio.Task[None]]()
        super().start_update_loop()

    async def stop_update_loop(self) -> None:
        await super(Triggers, self).stop_update_loop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, session: AsyncSession, trigger: Trigger, row_id: int) -> None:
        task = asyncio.create_task(self._logged(trigger(row_id, session)), name=f"{trigger.__qualname__}#{row_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _logged(self, trigger: Coroutine[Any, Any, None]) -> None:
        name, began = trigger.__qualname__, time.perf_counter()
        LOGGER.debug("%s started", name)
        try:
            await trigger
        except Exception:
            LOGGER.exception("%s failed after %.2fs", name, time.perf_counter() - began)
            raise
        LOGGER.info("%s completed in %.2fs", name, time.perf_counter() - began)

    async def _trigger_proactive_suggestions(self, observation_id: int, session: AsyncSession) -> None:
        await super()._trigger_proactive_suggestions.in_session(session, observation_id)

    async def _trigger_gumbo_suggestions(self, proposition_id: int, session: AsyncSession) -> None:
        await super()._trigger_gumbo_suggestions.in_session(session, proposition_id)


class GumWithSharedSession(SharedSession, Gum):
    """GUM, and suggestions, and the fault."""
