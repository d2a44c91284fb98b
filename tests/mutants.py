"""
Breaks the package in one place at a time, and tells which of these mutants pass all tests that reach the place.

``nox -s mutants -- unit handle`` does it with the modules ``_unit`` and ``_handle``. The changes are those of Cosmic
Ray, and statements that are left out. What changes nothing but annotations is no mutant.

With ``--note`` the tests run once without a mutant, and what each of them reaches goes to ``build/mutants.json``.
Each mutant is then imported from a copy of the package, in a process of its own, and runs the tests that reach it until
one fails: those of its own file first, then the others, the quickest first. A mutant that hangs has been noticed.
Those that no test can notice, or that none has to, are in ``mutants.toml``, each with the reason.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import multiprocessing
import os
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from difflib import unified_diff
from pathlib import Path
from typing import NamedTuple

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import Keyword, Newline, PythonNode

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sa_isolated_tasks"
NOTES = ROOT / "build" / "mutants.json"
# Imported once for all mutants.
SLOW_IMPORTS = """
    aiosqlite anyio asyncmy asyncpg attrs fastapi greenlet httpx hypothesis psycopg pydantic pytest_asyncio
    sqlalchemy.ext.asyncio sqlalchemy.dialects.mysql sqlalchemy.dialects.postgresql sqlmodel sybil uvloop
"""
# What one test may take, in seconds; and what all of a mutant's may, beside what they took without it.
LONGEST, PATIENCE = 20, 10
# Of the many operators that another may be replaced by, those that make sense in its place: the rest fails at once.
SENSIBLE = re.compile(
    r"_(Add_Sub|Sub_Add|Div_Mul|BitOr_BitAnd|BitAnd_Sub)$|_(Is_IsNot|IsNot_Is|In_NotIn|NotIn_In)$|"
    r"_(Eq_NotEq|NotEq_Eq|Lt_LtE|Lt_GtE|Gt_GtE|Gt_LtE|LtE_Lt|LtE_Gt|GtE_Gt|GtE_Lt)$"
)


class Mutant(NamedTuple):
    module: str
    line: int
    operator: str
    source: str
    was: str
    becomes: str

    def __str__(self) -> str:
        return f"{self.module}.py:{self.line} {self.operator}\n- {self.was}\n+ {self.becomes}\n"


class WithoutStatement(Operator):
    """Puts ``pass`` in the place of a call, of an assignment, or of whatever else stands alone in its line."""

    def mutation_positions(self, node):
        if node.type != "simple_stmt" or node.children[0].type in {"string", "import_name", "import_from", "keyword"}:
            return
        yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        first = node.get_first_leaf()
        return PythonNode(
            "simple_stmt",
            [Keyword("pass", node.start_pos, prefix=first.prefix), Newline("\n", node.end_pos)],
        )

    @classmethod
    def examples(cls):
        return ()


class _WhatRuns(ast.NodeTransformer):
    """Leaves out what is there for readers and type checkers, and what saves memory alone."""

    def visit_Assert(self, node):
        return ast.Pass()

    def visit_Assign(self, node):
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        return ast.Pass() if names & {"__all__", "__slots__"} else self.generic_visit(node)

    def visit_ClassDef(self, node):
        node.decorator_list = [by for by in node.decorator_list if not (isinstance(by, ast.Name) and by.id == "final")]
        is_protocol = any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)
        return ast.Pass() if is_protocol else self.generic_visit(node)

    def visit_AnnAssign(self, node):
        if node.value is None:
            return ast.Pass()
        return self.generic_visit(ast.Assign([node.target], node.value))

    def visit_arg(self, node):
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node):
        node.returns = None
        overloads = [name for name in node.decorator_list if isinstance(name, ast.Name) and name.id == "overload"]
        return ast.Pass() if overloads else self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef


def what_runs(source: str) -> str:
    return ast.dump(_WhatRuns().visit(ast.parse(source)))


def source_of(module: str) -> str:
    return (PACKAGE / f"{module}.py").read_text()


def mutants_of(module: str) -> Iterator[Mutant]:
    source = source_of(module)
    tree = get_ast(source)
    seen = {what_runs(source)}
    operators = {name: get_operator(name) for name in operator_names()}
    operators = {name: kind() for name, kind in operators.items() if not kind.arguments()}
    for name, operator in (operators | {"WithoutStatement": WithoutStatement()}).items():
        positions = [at for node in ast_nodes(tree) for at in operator.mutation_positions(node)]
        if re.search("Replace(Binary|Comparison)Operator_", name) and not SENSIBLE.search(name):
            continue
        for occurrence, (start, _) in enumerate(positions):
            mutated = mutate_code(source, operator, occurrence)
            with contextlib.suppress(SyntaxError):
                runs = what_runs(mutated)
                if runs not in seen:
                    seen.add(runs)
                    was, becomes = _changed_lines(source, mutated)
                    yield Mutant(module, start[0], name.partition("/")[2] or name, mutated, was, becomes)


def _changed_lines(source: str, mutated: str) -> tuple[str, str]:
    lines = [*unified_diff(source.splitlines(), mutated.splitlines(), n=0, lineterm="")][3:]
    return tuple("\n".join(line[1:].strip() for line in lines if line[0] == sign).strip() for sign in "-+")


def reasons() -> dict[tuple[str, str, str], str]:
    """Why nothing notices a mutant: by module, and by its line before and after."""
    known = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    return {
        (f"_{module}", mutant["was"], becomes): mutant["reason"]
        for module, mutants in known.items()
        for mutant in mutants
        for becomes in mutant["becomes"]
    }


class Reaching:
    """A plugin for pytest: notes which lines of the package each test reaches, and the seconds that it takes."""

    def __init__(self) -> None:
        import coverage

        self.coverage = coverage.Coverage(
            data_file=None, source_pkgs=["sa_isolated_tasks"], concurrency=["thread", "greenlet"], config_file=False
        )
        self.seconds = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.coverage.switch_context(item.nodeid)
        began = time.perf_counter()
        result = yield
        self.seconds[item.nodeid] = time.perf_counter() - began
        self.coverage.switch_context("")
        return result

    def report(self) -> dict:
        self.coverage.stop()
        data = self.coverage.get_data()
        lines = {Path(name).stem: data.contexts_by_lineno(name) for name in data.measured_files()}
        return {"lines": lines, "seconds": self.seconds}


def note_what_is_reached() -> None:
    reaching = Reaching()
    reaching.coverage.start()
    if pytest.main(["-q", "-p", "no:cacheprovider"], plugins=[reaching]):
        raise SystemExit("the tests fail without a mutant")
    NOTES.parent.mkdir(exist_ok=True)
    NOTES.write_text(json.dumps(reaching.report()))


class _Only:
    """A plugin for pytest: these tests, in this order."""

    def __init__(self, tests: list[str]) -> None:
        self.order = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((item for item in items if item.nodeid in self.order), key=lambda i: self.order[i.nodeid])


# Filled before the processes are forked.
REACHED: dict = {}


def tests_of(mutant: Mutant) -> list[list[str]]:
    """
    Those that reach the line: of its own file, then of the others; then the rest of its own file.

    Among the rest may be a test that reaches the line in another process, or when the module is imported.
    """
    own = f"tests/test{mutant.module}.py"
    lines = REACHED["lines"][mutant.module]
    # A decorator, or a signature, runs on import: what counts is the next line that a test reaches.
    below = (set(lines.get(str(mutant.line + more), ())) - {""} for more in range(20))
    reaching = next(filter(None, below), set())
    # Not the examples in the docs, each of which needs the ones before it.
    quickest = sorted((test for test in REACHED["seconds"] if test.startswith("tests/")), key=REACHED["seconds"].get)
    mine, others = ([test for test in quickest if test.startswith(own) is here] for here in (True, False))
    parts = (
        [test for test in mine if test in reaching],
        [test for test in others if test in reaching],
        [test for test in mine if test not in reaching],
    )
    return [part for part in parts if part]


def fate_of(mutant: Mutant) -> str:
    """Runs in one of the processes, each of which has a database of its own."""
    os.environ["TEST_DATABASE"] = multiprocessing.current_process().name
    with tempfile.TemporaryDirectory(prefix="sit-mutant-") as directory:
        # With the times of the files, so that only one has to be compiled.
        package = shutil.copytree(PACKAGE, Path(directory) / PACKAGE.name)
        (package / f"{mutant.module}.py").write_text(mutant.source)
        for tests in tests_of(mutant):
            fate = _run(directory, tests, PATIENCE + 3 * sum(REACHED["seconds"][test] for test in tests))
            if fate != "survived":
                return fate
    return "survived"


def _run(directory: str, tests: list[str], patience: float) -> str:
    # The child has the other end of a pipe, which is closed when it ends.
    ended, held = os.pipe()
    child = os.fork()
    if child == 0:
        _run_in_child(directory, tests)
    os.close(held)
    in_time, _, _ = select.select([ended], [], [], patience)
    os.close(ended)
    if not in_time:
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not in_time:
        return "hung"
    return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"


def _run_in_child(directory: str, tests: list[str]) -> None:
    os.setsid()
    sys.path.insert(0, directory)
    os.environ["PYTHONPATH"] = directory
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(silence, stream)
    files = sorted({test.partition("::")[0] for test in tests})
    # Plugins are among what was imported already.
    options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    options += ["-o", f"faulthandler_timeout={LONGEST}", "-o", "faulthandler_exit_on_timeout=true"]
    code = 70
    with contextlib.suppress(BaseException):
        code = int(pytest.main([*options, *files], plugins=[_Only(tests)]))
    os._exit(code)


def run(modules: list[str], jobs: int) -> int:
    """Prints what survives, and the number of each fate; gives the number of survivors without a reason."""
    known = reasons()
    REACHED.update(json.loads(NOTES.read_text()))
    for name in SLOW_IMPORTS.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    mutants = [mutant for module in modules for mutant in mutants_of(f"_{module}")]
    for module in modules:
        if fate_of(Mutant(f"_{module}", 0, "", source_of(f"_{module}"), "", "")) != "survived":
            sys.exit(f"the tests of {module} fail without a mutant")
    fates: Counter[tuple[str, str]] = Counter()
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        for mutant, fate in zip(mutants, pool.map(fate_of, mutants), strict=True):
            unexpected = fate == "survived" and (mutant.module, mutant.was, mutant.becomes) not in known
            fates[mutant.module, fate if fate != "survived" or unexpected else "survived for a reason"] += 1
            if unexpected:
                print(mutant, flush=True)
    for (module, fate), number in sorted(fates.items()):
        print(f"{module}.py: {number} {fate}")
    return sum(number for (_, fate), number in fates.items() if fate == "survived")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="without the underscore, as `unit`")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--note", action="store_true", help="run the tests, and note what each of them reaches")
    given = parser.parse_args()
    if given.note:
        note_what_is_reached()
    sys.exit(bool(given.modules and run(given.modules, given.jobs)))
