"""A model that runs here, and speaks the chat-completions protocol of OpenAI."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web
from answers import answer_to, kind_of

Delay = tuple[float, float]


@dataclass
class ModelServer:
    """
    In a thread and a loop of its own, so that no task of it is in the loop that is looked at.

    Args:
        engine: seconds, from and to, that an answer to a trigger takes.
        parent: the same for GUM's own questions.
    """

    engine: Delay = (0.0, 0.0)
    parent: Delay = (0.0, 0.0)
    refused: set[str] = field(default_factory=set)
    """Kinds of questions that are answered by an error."""
    asked: list[str] = field(default_factory=list)
    """The kinds of all questions so far."""
    url: str = ""
    _gates: dict[str, asyncio.Event] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="model")
        self._thread.start()
        self.url = self._run(self._serve())
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()
        self._run(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def hold(self, kind: str) -> None:
        """Questions of this kind are not answered any more, until they are released."""
        self._gates[kind] = asyncio.Event()

    def release(self) -> None:
        while self._gates:
            _, gate = self._gates.popitem()
            self._loop.call_soon_threadsafe(gate.set)

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _serve(self) -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return "http://{}:{}/v1".format(*self._runner.addresses[0])

    async def _complete(self, request: web.Request) -> web.Response:
        question = await request.json()
        kind = kind_of(question)
        self.asked.append(kind)
        await asyncio.sleep(random.uniform(*(self.engine if kind == "suggestions" else self.parent)))  # noqa: S311
        if kind in self._gates:
            await self._gates[kind].wait()
        if kind in self.refused:
            return web.json_response({"error": {"message": f"no {kind} today"}}, status=400)
        message = {"role": "assistant", "content": json.dumps(answer_to(question))}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return web.json_response(
            {"id": "1", "object": "chat.completion", "created": 0, "model": question["model"], "choices": [choice]}
        )
