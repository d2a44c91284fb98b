"""What the pages say about the package is so, where a test can tell; their examples are run by sybil."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sa_isolated_tasks

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")


def anchors_of(page):
    """As they are made where the repository is shown, and by MyST."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("*.md")), *PAGES], ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    """To a file of the repository and a heading in it; others are left to their owners."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in LINK.findall(text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_is_in_the_contents(page):
    """A page that nobody can reach is not there."""
    index = (ROOT / "docs" / "index.md").read_text()

    assert page.stem == "index" or re.search(rf"^{page.stem}$", index, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_opens_with_when_to_read_it(page):
    """A reader decides in the first lines; pages that only include a file of the root have the opening there."""
    lines = page.read_text().splitlines()

    assert lines[0].startswith("```{include}") or any(re.match("When to (use|read)", line) for line in lines[:6])


NAMED = re.compile(r"\b(test_\w+\.py)(?:::(test_\w+))?")
DEFINED = re.compile(r"^(?:async )?(?:def )?(test_\w+)", re.MULTILINE)


def test_every_test_that_is_named_is_there():
    """In a page, or in a comment that says which test guards a race."""
    texts = [*PAGES, *ROOT.glob("*.md"), *ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py")]
    named = {match for path in texts for match in NAMED.findall(path.read_text())}
    tests = {path.name: ["", *DEFINED.findall(path.read_text())] for path in ROOT.glob("tests/**/test_*.py")}

    assert len(named) > 100
    assert [(file, name) for file, name in named if name not in tests[file]] == []


def test_every_public_name_is_on_the_page_of_names():
    """No more, and no less."""
    page = (ROOT / "docs" / "api.md").read_text()
    names = re.findall(r"^\.\. (?:auto\w+|py:data):: (\w+)", page, re.MULTILINE)

    assert sorted(sa_isolated_tasks.__all__) == sorted(names)


# The versions that were tried.


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("versions_tool", ROOT / "docs" / "tools" / "versions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_leaves_its_result_for_the_page_of_versions(tool, tmp_path, monkeypatch):
    """With SIT_VERSIONS a run leaves versions, servers and counts; the tool makes the page of them."""
    suite = ("tests/test_steps.py", "tests/test_logging.py")
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "traceback or shield", *suite],
        cwd=ROOT,
        env={**os.environ, "SIT_VERSIONS": str(tmp_path)},
        check=True,
        capture_output=True,
    )
    monkeypatch.setattr(tool, "PAGE", tmp_path / "versions.md")

    tool.main(tmp_path)

    (result,) = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    page = (tmp_path / "versions.md").read_text()
    assert result["tests"]["passed"] > 0
    row = rf"^\| {result['python']} \| {result['sqlalchemy']} \| {result['tests']['passed']} "
    assert re.search(row, page, re.MULTILINE)
    assert re.search(r"\| SQLite [0-9.]+ \| aiosqlite [0-9.]+ \| [1-9]", page)


def test_a_run_with_a_failure_makes_no_page(tool, tmp_path, monkeypatch):
    """The page says that no test failed."""
    monkeypatch.setattr(tool, "PAGE", tmp_path / "versions.md")
    run = {"python": "3.13.0", "sqlalchemy": "2.1.9", "tests": {"passed": 1, "failed": 1}}
    (tmp_path / "run.json").write_text(json.dumps(run))

    with pytest.raises(SystemExit, match=r"Python 3\.13\.0, SQLAlchemy 2\.1\.9"):
        tool.main(tmp_path)

    assert not (tmp_path / "versions.md").exists()
