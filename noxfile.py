"""
What can be run: ``nox -l``.

``nox -s tests`` needs nothing but the Python that runs nox; ``nox -s matrix`` needs the others too.
"""

from __future__ import annotations

import os

import nox

nox.needs_version = ">=2025.10.16"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = bool(os.environ.get("CI"))

PROJECT = nox.project.load_toml("pyproject.toml")
TEST = nox.project.dependency_groups(PROJECT, "test")
LINT = nox.project.dependency_groups(PROJECT, "lint")
BENCH = nox.project.dependency_groups(PROJECT, "bench")
GUM = nox.project.dependency_groups(PROJECT, "gum")
DOCS = nox.project.dependency_groups(PROJECT, "docs")
TYPES = nox.project.dependency_groups(PROJECT, "types")

# SQLAlchemy below 2.0.31 does not import on Python 3.13, so the oldest two are paired with 3.11. The newest on the
# newest Python is the session `coverage`.
MATRIX = [
    nox.param("3.11", "1.4.54", id="py311-sqlalchemy14"),
    nox.param("3.11", "2.0.0", id="py311-sqlalchemy200"),
    nox.param("3.12", "2.0.58", id="py312-sqlalchemy20"),
    nox.param("3.11", "2.1.*", id="py311-sqlalchemy21"),
]
# SQLModel needs SQLAlchemy 2.0.14.
OLD, NOT_WITH_OLD = ("1.4.54", "2.0.0"), ("sqlmodel",)
# Everything that Python has to complain about, from the first import on.
STRICT = ("python", "-X", "dev", "-W", "error")


@nox.session
def tests(session: nox.Session) -> None:
    """The tests on this Python and the newest SQLAlchemy."""
    session.install(".", *TEST, *TYPES)
    session.run(*STRICT, "-m", "pytest", *session.posargs)


# Not on 3.11, which tells no tracer that a coroutine goes on with an exception: lines that have run look as if not.
@nox.session(python="3.13")
def coverage(session: nox.Session) -> None:
    """The same with branch coverage, which has to be complete."""
    session.install(".", *TEST, *TYPES)
    session.env["COVERAGE_FILE"] = f"{session.create_tmp()}/.coverage"
    session.run("coverage", "erase")
    session.run(*STRICT, "-m", "coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
@nox.parametrize(("python", "sqlalchemy"), MATRIX)
def matrix(session: nox.Session, sqlalchemy: str) -> None:
    """The tests on another Python and SQLAlchemy."""
    test = [name for name in TEST if not (sqlalchemy in OLD and name.startswith(NOT_WITH_OLD))]
    session.install(".", f"sqlalchemy=={sqlalchemy}", *test)
    meant = f"{session.python} {sqlalchemy.rstrip('*')}"
    check = (
        "import sys, sqlalchemy as s; v = '%d.%d ' % sys.version_info[:2] + s.__version__; assert v.startswith({!r}), v"
    )
    session.run("python", "-c", check.format(meant))
    session.run(*STRICT, "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint, and the layers of the package."""
    session.install("-e", ".", *LINT)
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Both type checkers, strict; ``tests/typing`` is checked by the tests."""
    session.install("-e", ".", "nox", *TYPES)
    session.run("mypy")
    session.run("pyright")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, in docs/_build/html; and the README as a package index shows it, in README.html there."""
    session.install(".", *DOCS)
    session.run("sphinx-build", "-n", "-W", "-E", "-b", "html", "docs", "docs/_build/html", *session.posargs)
    session.run("python", "docs/tools/readme.py", "docs/_build/README.html")


@nox.session
def demo(session: nox.Session) -> None:
    """The fault and its cure, on a SQLite file."""
    session.install(".", "aiosqlite")
    session.run("python", "examples/demo.py")


@nox.session
@nox.parametrize("sqlalchemy", ["2.0.*", "2.1.*"])
def gum(session: nox.Session, sqlalchemy: str) -> None:
    """The real GUM with background triggers, checked from outside; see docs/gum.md."""
    # What gum-ai asks for can be installed on macOS only; what is needed of it is in the group.
    session.install("--no-deps", "gum-ai==0.1.11")
    session.install(".", f"sqlalchemy=={sqlalchemy}", *GUM)
    session.run("python", "examples/gum", "--logs", session.create_tmp(), *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """What a unit costs, next to the pattern by hand and to other packages: writes docs/benchmarks.md."""
    session.install(".", *BENCH)
    session.run("python", "-m", "benchmarks", *session.posargs)
