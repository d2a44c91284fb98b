"""Runs the examples of README and docs as tests."""

import tempfile
from contextlib import ExitStack, chdir
from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser


def enter_directory(namespace: dict[str, Any]) -> None:
    """The files that the examples of a page make are in a directory of its own; ``ROOT`` is where the pages are."""
    namespace["ROOT"] = Path(__file__).parent
    namespace["_directory"] = stack = ExitStack()
    stack.enter_context(chdir(stack.enter_context(tempfile.TemporaryDirectory())))


def leave_directory(namespace: dict[str, Any]) -> None:
    namespace["_directory"].close()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    setup=enter_directory,
    teardown=leave_directory,
).pytest()
