"""The parts of ``examples/gum`` that need no ``gum-ai``; the whole is run by ``nox -s gum``."""

from __future__ import annotations

import importlib
import itertools
import json
import logging
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "gum"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module


def question(text, *properties):
    schema = {"properties": {name: {} for name in properties}}
    return {"messages": [{"content": text}], "response_format": {"json_schema": {"schema": schema}}}


def ended(name, state="succeeded"):
    record = logging.makeLogRecord({"msg": f"Triggers._trigger_{name} completed", "sit_state": state})
    seconds = ("total", "waiting", "queued", "body", "commit", "connection")
    vars(record).update({f"sit_{part}": number / 1000 for number, part in enumerate(seconds, 1)})
    return record


@pytest.fixture
def day(load):
    """Makes a day on which all went well, but for what is given."""
    good = {"updates": 1, "observations": 1, "propositions": 1, "expected": 4, "delivered": 4, "locked": 0}
    good |= {"complaints": [], "checked_out": 0, "ended": [ended("proactive_suggestions"), ended("gumbo_suggestions")]}

    def make(**other):
        return load("summary").Day(**(good | other))

    return make


@pytest.mark.parametrize("kind", ["propositions", "relations", "suggestions", "audit"])
def test_the_model_answers_by_the_schema_of_the_question(load, kind):
    """Each kind of question is known by the properties of its schema."""
    answers = load("answers")

    assert answers.kind_of(question("", kind)) == kind


def test_every_proposition_of_the_question_has_a_relation(load):
    """GUM drops a proposition that the model does not relate."""
    answer = load("answers").answer_to(question("[id=3] Reads.\n\n[id=14] Writes.", "relations"))

    assert [relation["source"] for relation in answer["relations"]] == [3, 14]


def test_the_model_is_sure_of_one_proposition_in_two(load):
    """Both kinds of propositions are there: one that starts a trigger, one that does not."""
    answer = load("answers").answer_to(question("Reads mail.", "propositions"))

    assert [item["confidence"] >= 8 for item in answer["propositions"]] == [True, False]


def test_the_recorded_day_runs_forward():
    """The shipped day is one that an observer can replay: every line has a time and a text, and time runs forward."""
    moments = [json.loads(line) for line in (EXAMPLE / "recorded_day.jsonl").read_text(encoding="utf-8").splitlines()]

    assert len(moments) == 30
    assert all(earlier["at"] < later["at"] for earlier, later in itertools.pairwise(moments))
    assert all(moment["content"] for moment in moments)


def test_a_good_day_holds(day):
    """Nothing is found where nothing is wrong."""
    assert day().holds


@pytest.mark.parametrize(
    "wrong",
    [
        {"observations": 0},
        {"delivered": 3},
        {"expected": 0, "delivered": 0, "ended": []},
        {"locked": 1},
        {"complaints": ["a warning"]},
        {"checked_out": 1},
        {"ended": [ended("proactive_suggestions")]},
        {"ended": [ended("proactive_suggestions"), ended("gumbo_suggestions", "failed")]},
    ],
    ids=["unobserved", "undelivered", "empty", "locked", "complaint", "connection", "line", "failure"],
)
def test_a_day_on_which_one_thing_went_wrong_does_not_hold(day, wrong):
    """Each of the things that are looked at counts by itself."""
    assert not day(**wrong).holds


def test_the_table_has_a_line_for_each_kind_and_figure(load, day):
    """A person reads where the time went, in milliseconds, for both kinds of triggers."""
    lines = list(load("summary").report(day()))

    rows = [line.split() for line in lines if ", " in line and "triggers" not in line and line.split()[-1] == "6.0"]
    assert [row[0] for row in rows] == ["proactive,", "proactive,", "gumbo,", "gumbo,"]
    assert rows[0][2:] == ["1", "1.0", "2.0", "3.0", "4.0", "5.0", "6.0"]
