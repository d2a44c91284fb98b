"""What the model answers: made up, and always the same for the same question."""

from __future__ import annotations

import random
from typing import Any

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
