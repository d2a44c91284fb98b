"""Both type checkers infer every right call exactly, and find every wrong one."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FILES = [
    path
    for path in sorted((Path(__file__).parent / "typing").glob("*.py"))
    if importlib.util.find_spec("sqlmodel") or not path.stem.endswith("sqlmodel")
]
ROOT = Path(__file__).parents[1]
CHECKERS = ("mypy", "pyright")


def run(*command):
    return subprocess.run(
        [sys.executable, "-m", *command, *map(str, FILES)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def errors_of_mypy():
    finished = run("mypy", "--strict", "--no-error-summary", "--no-color-output", "--show-absolute-path")
    assert finished.stderr == ""
    found = re.findall(r"^(.+?):(\d+): error: (.*)$", finished.stdout, re.MULTILINE)
    return [(Path(path).name, int(line), text) for path, line, text in found]


def errors_of_pyright():
    finished = run("pyright", "--outputjson", "--pythonpath", sys.executable)
    report = json.loads(finished.stdout)
    assert report["summary"]["filesAnalyzed"] == len(FILES)
    return [
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1, found["message"])
        for found in report["generalDiagnostics"]
    ]


@pytest.fixture(scope="module", params=CHECKERS)
def errors(request):
    """What one checker says about all files, in one run."""
    for needed in CHECKERS:
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    return {"mypy": errors_of_mypy, "pyright": errors_of_pyright}[request.param]()


def marked_lines():
    return {
        (path.name, number)
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.endswith("  # E")
    }


def test_every_wrong_call_is_an_error(errors):
    """Each marked line has an error, in mypy and in pyright."""
    found = {(name, line) for name, line, _ in errors}

    assert marked_lines() - found == set()


def test_no_right_call_is_an_error(errors):
    """No other line has one: the types that `assert_type` names are exact."""
    unexpected = [error for error in errors if error[:2] not in marked_lines()]

    assert unexpected == []


def test_there_are_wrong_calls():
    """The two tests above compare something."""
    assert len(marked_lines()) > 70
    assert {name for name, _ in marked_lines()} == {path.name for path in FILES if path.stem.startswith("wrong")}
