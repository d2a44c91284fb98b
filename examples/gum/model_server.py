"""A model that runs here: it speaks the chat-completions protocol of OpenAI, and makes its answers up."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

Delay = tuple[float, float]
Answer = dict[str, Any]


def kind_of(request: dict[str, Any]) -> str:
    """What the schema of the answer is about."""
    properties = request["response_format"]["json_schema"]["schema"]["properties"]
    return next((name for name in ("propositions", "relations", "suggestions") if name in properties), "audit")


def answer_to(request: dict[str, Any]) -> Answer:
    """An answer that fits the schema that the request asks for."""
    text = request["messages"][-1]["content"]
    return _ANSWERS[kind_of(request)](text)


def _propositions(text: str) -> Answer:
    # The same text, the same propositions: one that GUM is confident of, one that it is not.
    number = random.Random(text).randrange(10**6)  # noqa: S311 -- no secret
    return {
        "propositions": [
            {"proposition": f"Works on {number}.", "reasoning": "It is open.", "confidence": 9, "decay": 5},
            {"proposition": f"May like {number}.", "reasoning": "A guess.", "confidence": 3, "decay": 5},
        ]
    }


def _relations(text: str) -> Answer:
    ids = [int(part.partition("]")[0]) for part in text.split("[id=")[1:] if part.partition("]")[0].isdigit()]
    return {"relations": [{"source": number, "label": "UNRELATED", "target": []} for number in ids]}


def _suggestions(text: str) -> Answer:
    about = text.splitlines()[-1][:80]
    draft = {"description": about, "rationale": "It was seen.", "expected_utility": 7.0, "probability_useful": 0.6}
    return {"suggestions": [{"title": f"Help {number} with it", **draft} for number in (1, 2)]}


def _audit(_text: str) -> Answer:
    facts = {"is_new_information": True, "transmit_data": True}
    return facts | {"data_type": "None", "subject": "the user", "recipient": "the model"}


_ANSWERS = {"propositions": _propositions, "relations": _relations, "suggestions": _suggestions, "audit": _audit}


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
