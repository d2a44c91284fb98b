"""
What can be run: ``nox -l``.

``nox`` alone runs what a contributor needs before a commit. That and ``nox -s tests_here`` need nothing but the Python
that runs nox; ``nox -s tests`` needs the others too. With ``CI`` in the environment a missing Python is a failure.
"""

from __future__ import annotations

import os
import sys

import nox

nox.needs_version = ">=2025.10.16"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "quick"]
nox.options.error_on_missing_interpreters = bool(os.environ.get("CI"))

PROJECT = nox.project.load_toml("pyproject.toml")
GROUPS = {name: nox.project.dependency_groups(PROJECT, name) for name in PROJECT["dependency-groups"]}

NEWEST = "2.1.*"
# Every pair that imports: 2.0.0 is not here with 3.13, on which SQLAlchemy imports from 2.0.31 on.
PAIRS = [
    *[("3.11", "1.4.54"), ("3.11", "2.0.0"), ("3.11", "2.0.*"), ("3.11", NEWEST)],
    *[("3.12", "1.4.54"), ("3.12", "2.0.0"), ("3.12", "2.0.*"), ("3.12", NEWEST)],
    *[("3.13", "1.4.54"), ("3.13", "2.0.*"), ("3.13", NEWEST)],
]
# On these all the tests run, so that each Python and each SQLAlchemy is there; on the others the quick ones.
FULL = [("3.11", "1.4.54"), ("3.11", "2.0.0"), ("3.12", "2.0.*")]
# And on these. They have no tag: in CI the first is `tests_here`, whose Python is 3.11 there, the other is `coverage`.
ELSEWHERE = [("3.11", NEWEST), ("3.13", NEWEST)]


def _named(pairs: list[tuple[str, str]]) -> list[nox.param]:
    def tags_of(pair: tuple[str, str]) -> list[str]:
        return ["full"] if pair in FULL else [] if pair in ELSEWHERE else ["quick"]

    return [nox.param(*pair, id=f"py{pair[0]}-sqlalchemy{pair[1].rstrip('.*')}", tags=tags_of(pair)) for pair in pairs]


# SQLModel needs SQLAlchemy 2.0.14.
OLD, NOT_WITH_OLD = ("1.4.54", "2.0.0"), ("sqlmodel",)
# The oldest that pyproject.toml allows; with them only what needs no other library, since those ask for newer ones.
LOWEST = [spec.replace(">=", "==") for spec in PROJECT["project"]["dependencies"]]
BARE = ("pytest", "pytest-asyncio", "hypothesis", "sybil", "anyio", "aiosqlite", "asyncpg", "asyncmy", "pixeltable")
CORE_TESTS = [
    f"tests/test_{name}.py"
    for name in ("unit", "scope", "handle", "isolated", "after_commit", "watch", "driving", "commit_in_body", "sweep")
]
# Without those that have to wait, for a server or a program.
QUICK = [f"--ignore=tests/{name}" for name in ("faults", "cases", "test_leaving.py", "test_soak.py", "test_limit.py")]
LOOP_TESTS = [f"tests/test_{name}.py" for name in ("scope", "handle", "after_commit", "limit")]
# Everything that Python has to complain about, from the first import on.
STRICT = ("python", "-X", "dev", "-W", "error")

# The tests run on the wheel, not on the tree, and on the versions that they were meant for.
MEANT = """
import sys, sqlalchemy, sa_isolated_tasks
found = "%d.%d" % sys.version_info[:2], sqlalchemy.__version__
assert found[0] == {0!r} and found[1].startswith({1!r}), found
assert "site-packages" in sa_isolated_tasks.__file__, sa_isolated_tasks.__file__
"""

LOWEST_MEANT = """
from importlib.metadata import version
for name, lowest in (requirement.split("==") for requirement in {0}):
    assert version(name).startswith(lowest), (name, version(name))
"""


def install(session: nox.Session, *requirements: str, sqlalchemy: str) -> None:
    """The wheel, with *requirements*; a version of SQLAlchemy may end in a star."""
    session.install(".", f"sqlalchemy=={sqlalchemy}", *requirements)
    session.run("python", "-c", MEANT.format(_python_of(session), sqlalchemy.rstrip("*")), silent=True)


def _python_of(session: nox.Session) -> str:
    if isinstance(session.python, str):
        return session.python
    version = session.run("python", "-c", "import sys; print('%d.%d' % sys.version_info[:2])", silent=True)
    return str(version).strip()


def run_tests(session: nox.Session, *args: str, which: str, with_coverage: bool = False) -> None:
    """Says *which* tests they are, for the page of versions; if only some of them are run, it is told nothing."""
    session.env["SIT_TESTS"] = which
    if session.posargs:
        session.env["SIT_VERSIONS"] = None
    program = ("coverage", "run", "-m", "pytest") if with_coverage else ("pytest",)
    session.run(*STRICT, "-m", *program, *args, *session.posargs)


@nox.session
@nox.parametrize(("python", "sqlalchemy"), _named(PAIRS))
def tests(session: nox.Session, sqlalchemy: str) -> None:
    """The tests on a pair of Python and SQLAlchemy: all of them on five, on the others the quick ones."""
    # SQLAlchemy 1.4 has no types of its own.
    group = GROUPS["test" if sqlalchemy.startswith("1.") else "types"]
    install(
        session,
        *[name for name in group if not (sqlalchemy in OLD and name.startswith(NOT_WITH_OLD))],
        sqlalchemy=sqlalchemy,
    )
    which = _which(session.python, sqlalchemy)
    run_tests(session, *([] if which == "all" else QUICK), which=which)


def _which(python: object, sqlalchemy: str) -> str:
    return "all" if (python, sqlalchemy) in [*FULL, *ELSEWHERE] else "quick"


@nox.session
def tests_here(session: nox.Session) -> None:
    """The tests on this Python and the newest SQLAlchemy."""
    install(session, *GROUPS["test"], *GROUPS["types"], sqlalchemy=NEWEST)
    run_tests(session, which="all")


@nox.session
def quick(session: nox.Session) -> None:
    """The same without those that have to wait, for a server or a program."""
    install(session, *GROUPS["test"], *GROUPS["types"], sqlalchemy=NEWEST)
    run_tests(session, *QUICK, which="quick")


# Not on 3.11, which tells no tracer that a coroutine goes on with an exception: lines that have run look as if not.
@nox.session(python="3.13")
def coverage(session: nox.Session) -> None:
    """The same with branch coverage, which has to be complete."""
    install(session, *GROUPS["test"], *GROUPS["types"], sqlalchemy=NEWEST)
    session.env["COVERAGE_FILE"] = f"{session.create_tmp()}/.coverage"
    session.run("coverage", "erase")
    run_tests(session, which="all", with_coverage=True)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The core tests with the lowest versions of everything that the package depends on."""
    bare = [name for name in GROUPS["test"] if name.startswith(BARE)]
    install(session, *LOWEST, *bare, sqlalchemy="1.4.54")
    session.run("python", "-c", LOWEST_MEANT.format(LOWEST), silent=True)
    # The plugin of the anyio that gets along with them makes pytest warn.
    run_tests(session, "-p", "no:anyio", "-k", "not psycopg and not mariadb", *CORE_TESTS, which="core")


@nox.session(python="3.13")
@nox.parametrize("loop", ["uvloop", "eager"])
def loops(session: nox.Session, loop: str) -> None:
    """The tests of scopes on another event loop, and with eager tasks."""
    install(session, *GROUPS["test"], sqlalchemy=NEWEST)
    session.env["SIT_LOOP"] = loop
    run_tests(session, *LOOP_TESTS, which={"uvloop": "scopes on uvloop", "eager": "scopes with eager tasks"}[loop])


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint, and the layers of the package."""
    session.install("-e", ".", *GROUPS["lint"])
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Both type checkers, strict, and that the types of every public name are known; ``tests/typing`` is a test."""
    session.install(".", "nox", *GROUPS["types"])
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "sa_isolated_tasks", "--ignoreexternal")


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
    install(session, *GROUPS["gum"], sqlalchemy=sqlalchemy)
    session.run("python", "examples/gum", "--logs", session.create_tmp(), *session.posargs)


@nox.session(python=False)
def versions(session: nox.Session) -> None:
    """Writes docs/versions.md of test runs, as in ``-- build/versions``; each that it speaks of has to be there."""
    pairs = ["/".join([python, sqlalchemy, _which(python, sqlalchemy)]) for python, sqlalchemy in PAIRS]
    others = ["3.11/1.4.54/core", f"3.13/{NEWEST}/scopes on uvloop", f"3.13/{NEWEST}/scopes with eager tasks"]
    session.run(sys.executable, "docs/tools/versions.py", *session.posargs, *pairs, *others)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, in docs/_build/html; and the README as a package index shows it, in README.html there."""
    session.install(".", *GROUPS["docs"])
    session.run("sphinx-build", "-n", "-W", "-E", "-b", "html", "docs", "docs/_build/html", *session.posargs)
    session.run("python", "docs/tools/readme.py", "docs/_build/README.html")


# Not on 3.11, where no tracer is told of everything that runs.
@nox.session(python="3.13")
def mutants(session: nox.Session) -> None:
    """Breaks modules, as in ``-- unit scope``, in one place at a time: the tests have to notice."""
    install(session, *GROUPS["mutants"], sqlalchemy=NEWEST)
    session.run(*STRICT, "tests/mutants.py", "--note")
    session.run(*STRICT, "tests/mutants.py", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """The source distribution and the wheel: what is in them, and that the wheel works in an empty environment."""
    session.install("build[uv]", "twine")
    dist = session.create_tmp()
    session.run("python", "tests/check_dist.py", dist)
    session.run("twine", "check", "--strict", f"{dist}/source/*", f"{dist}/tree/*")


# Not on 3.11, which one of the peers does without.
@nox.session(python="3.13")
def bench(session: nox.Session) -> None:
    """What a unit costs, next to the pattern by hand and to other packages: writes docs/benchmarks.md."""
    session.install(".", *GROUPS["bench"])
    session.run("python", "-m", "benchmarks", *session.posargs)
