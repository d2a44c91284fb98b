"""An observer that replays a recorded day."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from gum_ai import Observer, Update

DAY = Path(__file__).with_name("recorded_day.jsonl")


@dataclass(frozen=True)
class Moment:
    """*at* is in minutes since midnight."""

    at: int
    content: str


def read_day(path: Path = DAY) -> list[Moment]:
    return [Moment(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


class RecordedDay(Observer):
    """
    Args:
        count: number of updates; the day is begun again when it is over.
        pause: seconds between two of them.
    """

    def __init__(self, count: int, pause: float = 0.0) -> None:
        self.count = count
        self._pause = pause
        super().__init__("recorded day")

    async def _worker(self) -> None:
        for number, moment in enumerate(itertools.islice(itertools.cycle(read_day()), self.count), 1):
            content = f"{moment.at // 60:02}:{moment.at % 60:02} {moment.content} ({number})"
            await self.update_queue.put(Update(content=content, content_type="input_text"))
            await asyncio.sleep(self._pause)
