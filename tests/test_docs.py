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


def test_no_module_of_the_package_is_longer_than_one_reads():
    """As the rules in CONTRIBUTING.md say."""
    lines = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "src").rglob("*.py")}

    assert len(lines) > 30
    assert {name: count for name, count in lines.items() if count > 400} == {}


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
        env={**os.environ, "SIT_VERSIONS": str(tmp_path), "SIT_TESTS": "a few"},
        check=True,
        capture_output=True,
    )
    monkeypatch.setattr(tool, "PAGE", tmp_path / "versions.md")

    (result,) = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    python, sqlalchemy = (result[name].rpartition(".")[0] for name in ("python", "sqlalchemy"))
    tool.main(tmp_path, [f"{python}/{sqlalchemy}.*/a few"])

    page = (tmp_path / "versions.md").read_text()
    assert result["tests"]["passed"] > 0
    versions = " | ".join([result["python"], result["sqlalchemy"], result["greenlet"], "a few"])
    row = rf"^\| {re.escape(versions)} \| {result['tests']['passed']} "
    assert re.search(row, page, re.MULTILINE)
    assert re.search(r"\| SQLite [0-9.]+ \| aiosqlite [0-9.]+ \| [1-9]", page)


@pytest.mark.parametrize("missing", ["3.12/2.0.0/all", "3.12/2.0.*/quick", "3.11/2.0.*/all", "3.12/2.0.58/all", None])
def test_a_run_that_is_missing_makes_no_page(tool, tmp_path, monkeypatch, missing):
    """The page has what the matrix has; a star stands for none that is expected by its exact version."""
    monkeypatch.setattr(tool, "PAGE", tmp_path / "versions.md")
    monkeypatch.setattr(tool, "page_of", lambda runs: f"a page of {len(runs)}")
    for name, (sqlalchemy, which) in {"a": ("2.0.0", "quick"), "b": ("2.0.57", "all")}.items():
        run = {"python": "3.12.1", "sqlalchemy": sqlalchemy, "which": which, "tests": {"passed": 1}}
        (tmp_path / f"{name}.json").write_text(json.dumps(run))
    there = ["3.12/2.0.0/quick", "3.12/2.0.*/all"]

    if missing is None:
        tool.main(tmp_path, there)
        assert (tmp_path / "versions.md").read_text() == "a page of 2"
    else:
        with pytest.raises(SystemExit, match=rf"^no results in .* of {re.escape(missing)}$"):
            tool.main(tmp_path, [*there, missing])
        assert not (tmp_path / "versions.md").exists()


def test_a_run_with_a_failure_makes_no_page(tool, tmp_path, monkeypatch):
    """The page says that no test failed."""
    monkeypatch.setattr(tool, "PAGE", tmp_path / "versions.md")
    run = {"python": "3.13.0", "sqlalchemy": "2.1.9", "tests": {"passed": 1, "failed": 1}}
    (tmp_path / "run.json").write_text(json.dumps(run))

    with pytest.raises(SystemExit, match=r"Python 3\.13\.0, SQLAlchemy 2\.1\.9"):
        tool.main(tmp_path, ["3.13/2.1.*/all"])

    assert not (tmp_path / "versions.md").exists()
