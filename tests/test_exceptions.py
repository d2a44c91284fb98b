"""The errors as texts and as values."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
from pathlib import Path
from types import FunctionType

import pytest

import sa_isolated_tasks
from sa_isolated_tasks import IsolatedTasksError, SessionPassedError, exceptions

PAGE = (Path(__file__).parent.parent / "docs" / "errors.md").read_text()
ERRORS = [
    value
    for value in vars(exceptions).values()
    if isinstance(value, type) and issubclass(value, IsolatedTasksError) and value is not IsolatedTasksError
]


def test_an_error_says_what_where_why_and_how_to_cure_it():
    """One line for each, and the page."""
    error = SessionPassedError("suggest() was given a session: arg 1", where="app.py:3: suggest(s)", cure="suggest()")

    lines = str(error).splitlines()

    assert [
        "[SIT101] suggest() was given a session: arg 1",
        "  at:   app.py:3: suggest(s)",
        f"  why:  {SessionPassedError.why}",
        "  cure: suggest()",
        "  docs: docs/errors.md#sit101",
    ] == lines


def test_an_error_leaves_out_what_it_does_not_know():
    """No empty lines; where the error was made for is always known."""
    error = IsolatedTasksError("what")

    assert re.fullmatch(r".*test_exceptions\.py:\d+", error.where)
    assert ["[SIT000] what", f"  at:   {error.where}", "  docs: docs/errors.md#sit000"] == str(error).splitlines()


async def test_an_error_that_the_event_loop_has_made_has_no_place():
    """A frame of asyncio is no line of the user's."""
    errors = []
    loop = asyncio.get_running_loop()

    loop.call_soon(_make_error_in_the_package, errors)
    await asyncio.sleep(0)

    assert [""] == [error.where for error in errors]


def _make_error_in_the_package(errors):
    errors.append(IsolatedTasksError("what"))


_make_error_in_the_package = FunctionType(  # as if it stood in the package
    _make_error_in_the_package.__code__, {**globals(), "__name__": "sa_isolated_tasks._test"}
)


def test_an_exception_whose_repr_raises_is_described_all_the_same():
    """A note about it must not raise in its turn."""

    class Odd(Exception):
        def __repr__(self):
            raise RuntimeError

        __str__ = __repr__

    assert "Odd" in exceptions.describe(Odd())


@pytest.mark.parametrize("make", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
@pytest.mark.parametrize("error", ERRORS)
def test_an_error_survives_pickle_and_copy(error, make):
    """Errors cross process borders, with all they know."""
    original = error("what", where="here", why="because", cure="so")

    assert str(original) == str(make(original))


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_has_a_code_of_its_own_and_a_place_in_the_docs(error):
    """The codes are unique, drawn in the tree of the module, and each has a heading in docs/errors.md."""
    assert 1 == [other.code for other in ERRORS].count(error.code)
    assert re.search(rf"{error.__name__}.*{error.code}", exceptions.__doc__)
    # The heading is the code alone: its anchor is that of the error's last line, in the repository and in the site.
    assert re.search(rf"^## {error.code}\n\n`{error.__name__}`\.$", PAGE, re.MULTILINE)
    assert f"| [{error.code}](#{error.code.lower()}) | `{error.__name__}` |" in PAGE


def test_the_page_of_errors_has_no_error_that_is_gone():
    """The headings and the table of docs/errors.md are those of the tree, in its order."""
    codes = sorted(error.code for error in ERRORS)

    assert codes == re.findall(r"^## (SIT\d+)", PAGE, re.MULTILINE)
    assert codes == re.findall(r"^\| \[(SIT\d+)\]", PAGE, re.MULTILINE)


def test_every_error_is_public():
    """The package exports them all."""
    assert {error.__name__ for error in ERRORS} <= set(sa_isolated_tasks.__all__)


def test_the_public_names_are_sorted_and_exist():
    """``__all__`` is what the package has."""
    assert sorted(sa_isolated_tasks.__all__) == list(sa_isolated_tasks.__all__)
    assert all(hasattr(sa_isolated_tasks, name) for name in sa_isolated_tasks.__all__)
