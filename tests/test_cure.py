"""
The cure in an error can be applied as it says, and what was refused then runs.

Each case is a snippet that is refused, and the exact cure. It is run from a file, as a user's module is; the cure is
applied to its source, by a reader that does what the words say and nothing else; and the cured snippet is run.
"""

from __future__ import annotations

import ast
import asyncio
import gc
import linecache
import re
import sys
import textwrap
import types

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import declarative_base
from starlette.background import BackgroundTask
from support import Item

from sa_isolated_tasks import InstancePassedError, SessionPassedError, TaskScope, isolated_session
from sa_isolated_tasks._callsite import CallSite
from sa_isolated_tasks._cure import cure_for
from sa_isolated_tasks._walk import Finding, Node

# ---- The reader.


class Reader:
    """Applies a cure to a source text."""

    def __init__(self, source: str, cure: str) -> None:
        self.tree = ast.parse(source)
        self.code, _, self.words = cure.partition("  # ")

    def apply(self) -> str:
        self._apply()
        return ast.unparse(ast.fix_missing_locations(self.tree))

    def _apply(self):
        called = re.fullmatch(self.CALLED, self.words)
        if called:
            self.apply_to_what_is_called(called[1])
            return
        for words, action in self.ACTIONS:
            found = re.fullmatch(words, self.words)
            if found:
                action(self, *found.groups())
                return
        raise AssertionError(f"nobody knows what to do with: {self.words!r}")

    # Where things are.

    def function(self, name):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        return next(node for node in ast.walk(self.tree) if isinstance(node, kinds) and node.name == name)

    def expression(self):
        return ast.parse(self.code, mode="eval").body

    def call(self):
        """The call that the cure rewrites: the one of the same function that has an argument to be cured."""
        callee = ast.unparse(self.expression().func)
        return next(
            node for node in ast.walk(self.tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == callee
        )

    # What can be done.

    def replace_the_call(self, *_words):
        call, new = self.call(), self.expression()
        call.args, call.keywords = new.args, new.keywords

    def replace_the_call_and_drop(self, function, parameter):
        self.replace_the_call()
        self.drop_parameter(function, parameter)

    def replace_the_call_and_drop_all(self, function, parameters):
        self.replace_the_call()
        for parameter in re.findall(r"'(\w+)'", parameters):
            self.drop_parameter(function, parameter)

    def replace_the_call_and_drop_what_takes_it(self, function):
        """The parameter for it is that of its position."""
        index = next(index for index, arg in enumerate(self.call().args) if ast.unparse(arg) == "other")
        self.replace_the_call()
        self.drop_parameter(function, self.function(function).args.args[index].arg)

    def drop_parameter(self, function, parameter):
        arguments = self.function(function).args
        defaults = dict(zip(reversed(arguments.args), reversed(arguments.defaults), strict=False))
        arguments.args = [arg for arg in arguments.args if arg.arg != parameter]
        arguments.defaults = [defaults[arg] for arg in arguments.args if arg in defaults]
        kept = [
            pair for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if pair[0].arg != parameter
        ]
        arguments.kwonlyargs, arguments.kw_defaults = [arg for arg, _ in kept], [default for _, default in kept]

    def insert_before_the_call(self, *_words):
        for node in ast.walk(self.tree):
            body = getattr(node, "body", None)
            for index, statement in enumerate(body if isinstance(body, list) else ()):
                if "guilty =" in ast.unparse(statement) and not hasattr(statement, "body"):
                    body.insert(index, ast.parse(self.code).body[0])
                    return

    def insert_in_class(self, name):
        cls = next(node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef) and node.name == name)
        cls.body.insert(0, ast.parse(self.code).body[0])

    def insert_first(self, function):
        self.function(function).body.insert(0, ast.parse(self.code).body[0])

    def insert_first_and_drop(self, function, parameters):
        self.insert_first(function)
        for parameter in re.findall(r"'(\w+)'", parameters):
            self.drop_parameter(function, parameter)

    def replace_the_line(self, caller):
        """Of a definition; dots stand for the parameters that are there already."""
        new = ast.parse(self.code.replace(", ...", "") + " pass").body[0]
        old = self.function(new.name)
        assert type(new) is type(old)
        old.args.args.insert(0, new.args.args[0])
        self.give_the_session(caller)

    def replace_the_lambda(self, caller):
        old = next(node for node in ast.walk(self.tree) if isinstance(node, ast.Lambda))
        old.args.args.insert(0, self.expression().args.args[0])
        self.give_the_session(caller)

    def replace_the_call_and_give(self, caller):
        self.replace_the_call()
        self.give_the_session(caller)

    def give_the_session(self, caller):
        function = self.function(caller)
        callbacks = {arg.arg for arg in function.args.args}
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in callbacks:
                node.args.insert(0, ast.Name("session"))

    def replace_the_default(self, function, caller):
        name = self.code.partition("=")[0]
        self.function(function).args.defaults = [ast.Constant(None)]
        for node in ast.walk(self.function(caller)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "callback":
                node.keywords.append(ast.keyword(name, ast.Name("session")))

    def move_the_call(self, function, parameter):
        """Into the function, in place of a parameter; who calls the function leaves that argument out."""
        body = ast.unparse(self.function(function))
        keyword = "await" if self.code.startswith("await ") else "in"
        made = self.code.removeprefix("await ")
        if made.endswith("(...)"):
            (made,) = re.findall(rf"= ({made[:-5]}\(.*\))", ast.unparse(self.tree))
        replaced = re.sub(rf"\b{keyword} {parameter}\b", f"{keyword} {made}", body)
        assert replaced != body
        self.function(function).body = ast.parse(replaced).body[0].body
        self.drop_parameter(function, parameter)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {function, "scope.spawn"}:
                node.args.pop()
        self.drop_lines(f"{parameter} = ")

    def drop_lines(self, beginning):
        lines = ast.unparse(self.tree).splitlines()
        self.tree = ast.parse("\n".join(line for line in lines if not line.strip().startswith(beginning)))

    def replace_the_partial(self, caller):
        """Dots stand for what is given already."""
        new = self.expression()
        old = next(
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "functools.partial"
        )
        given = {keyword.arg: keyword.value for keyword in old.keywords}
        names = [arg.arg for arg in self.function(ast.unparse(new.args[0])).args.args]
        given |= dict(zip(names, old.args[1:], strict=False))
        old.args = [new.args[0], *old.args[1 : len(new.args)]]
        old.keywords = [ast.keyword(keyword.arg, given[keyword.arg]) for keyword in new.keywords]
        self.give_the_session(caller)

    def replace_what_is_made(self, caller):
        """A coroutine that is made before the call is made where it is called."""
        new = ast.parse(self.code + " pass").body[0]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                node.args = [arg.func if ast.unparse(arg) == f"{new.name}()" else arg for arg in node.args]
        text = ast.unparse(self.function(caller))
        self.function(caller).body = ast.parse(re.sub(r"await coro\b", "await coro()", text)).body[0].body
        self.function(caller).args.args[-1].arg = "coro"
        self.replace_the_line(caller)

    def load(self, function, line):
        """In the function: an assignment is its first line, anything else an expression in place of its own."""
        self.replace_the_call()
        target = self.function(function)
        for parsed in ast.parse(f"async def f():\n    {line}").body[0].body:
            if isinstance(parsed, ast.Assign):
                target.body.insert(0, parsed)
                continue
            place = ast.unparse(parsed.value.value.args[1])
            body = ast.unparse(target).replace(place, f"({ast.unparse(parsed)})")
            target.body = ast.parse(body).body[0].body

    ACTIONS = (
        (r"", replace_the_call),
        (r"(or, in class .*)", replace_the_call),
        (r"and (\w+)\(\) without its parameter '(\w+)': it has a session of its own", replace_the_call_and_drop),
        (r"and (\w+)\(\) without its parameters ('.*'): it has a session of its own", replace_the_call_and_drop_all),
        (
            r"and (\w+)\(\) without a parameter for it: it runs in the session that is given first",
            replace_the_call_and_drop_what_takes_it,
        ),
        (r"(before the call(?:: .*)?)", insert_before_the_call),
        (r"in class (\w+), if it keeps .*", insert_in_class),
        (r"first line of (\w+)\(\): the session of the unit", insert_first),
        (r"first line of (\w+)\(\), in place of its parameters? ('.*')", insert_first_and_drop),
        (
            r"in place of the default of (\w+)\(\): (\w+)\(\) gives it the session of the unit",
            replace_the_default,
        ),
        (r"in (\w+)\(\), in place of its parameter '(\w+)': with the session of the unit", move_the_call),
        (r"in (\w+)\(\): (.*)", load),
    )
    CALLED = r"(\w+)\(\) calls it with the session of the unit"

    def apply_to_what_is_called(self, caller):
        if self.code.startswith("lambda"):
            self.replace_the_lambda(caller)
        elif self.code.startswith("functools.partial"):
            self.replace_the_partial(caller)
        elif self.code.endswith(":") and "await coro" in ast.unparse(self.tree):
            self.replace_what_is_made(caller)
        elif self.code.endswith(":"):
            self.replace_the_line(caller)
        else:
            self.replace_the_call_and_give(caller)


# ---- The snippets.

HEAD = """
import asyncio
import collections
import contextlib
import dataclasses
import functools
import types
from typing import Any
import attrs
import pydantic
import sqlalchemy
"""


class Snippets:
    """Runs snippets from files; *outer* gives them a session of the parent's, and *one* asks the database in a unit."""

    def __init__(self, directory, monkeypatch, Session, scope):
        self._directory = directory
        self._monkeypatch = monkeypatch
        self._number = 0
        self._outer = []
        self._names = {"Session": Session, "scope": scope, "isolated_session": isolated_session, "Item": Item}

    def outer(self):
        self._outer.append(self._names["Session"]())
        return self._outer[-1]

    async def one(self, session):
        assert all(session is not outer for outer in self._outer), "this is the parent's session"
        return (await session.execute(sa.text("select 1"))).scalar()

    async def run(self, source):
        self._number += 1
        path = self._directory / f"snippet_{self._number}.py"
        path.write_text(source, encoding="utf-8")
        module = types.ModuleType("snippet")
        vars(module).update(self._names, outer=self.outer, one=self.one, __file__=str(path))
        self._monkeypatch.setitem(sys.modules, "snippet", module)
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))  # noqa: S102 -- as an import does
        try:
            return await module.main()
        finally:
            while self._outer:
                await self._outer.pop().close()

    async def empty(self):
        async with self._names["Session"]() as session:
            await session.execute(sa.delete(Item))
            await session.commit()

    async def refusal(self, source, kind=SessionPassedError):
        with pytest.raises(kind) as caught:
            await self.run(source)
        self._close_coroutines()
        return caught.value

    def _close_coroutines(self):
        """Those that a snippet has made and that were refused: nobody will ever await them."""
        for coroutine in [each for each in gc.get_objects() if type(each) is types.CoroutineType]:
            if coroutine.cr_code.co_filename.startswith(str(self._directory)):
                coroutine.close()

    async def cured(self, body, kind=SessionPassedError):
        """The cure, after it has been seen to work."""
        source = HEAD + textwrap.dedent(body)
        error = await self.refusal(source, kind)
        lines = source.splitlines()
        (first,) = (number for number, line in enumerate(lines, 1) if "guilty =" in line)
        place = re.match(r"(.*):(\d+): (.*)", error.where)
        assert place[1] == str(self._directory / f"snippet_{self._number}.py")
        assert abs(int(place[2]) - first) <= 1
        assert place[3] == lines[int(place[2]) - 1].strip()
        assert await self.run(Reader(source, error.cure).apply()) == 1
        return error.cure


@pytest.fixture(autouse=True, scope="module")
def only_new_objects():
    """Are looked at, several hundred times: there are half a million old ones."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
async def snippets(tmp_path, monkeypatch, LiteSession):
    async with TaskScope(LiteSession, name="cures") as scope:
        yield Snippets(tmp_path, monkeypatch, LiteSession, scope)
    linecache.clearcache()


# How the unit takes what it is given, and how it is started. `{}` is what is passed.
SPAWNED = """
{definitions}

async def work(session, ctx=None):
    return await one(session)

async def main():
    session = outer()
    {before}
    guilty = scope.spawn(work, {argument})
    return await guilty
"""
CALLED = """
{definitions}

@isolated_session(Session)
async def work(session, ctx=None):
    return await one(session)

async def main():
    session = outer()
    {before}
    guilty = work({argument})
    return await guilty
"""
METHOD = """
{definitions}

class Repo:
    @isolated_session(Session)
    async def work(self, session, ctx=None):
        return await one(session)

async def main():
    session = outer()
    repo = Repo()
    {before}
    guilty = repo.work({argument})
    return await guilty
"""
STARTS = {"scope.spawn(work, ": SPAWNED, "work(": CALLED, "repo.work(": METHOD}

DATACLASS = "@dataclasses.dataclass\nclass Ctx:\n    session: Any\n    number: int = 1"
FROZEN = "@dataclasses.dataclass(frozen=True, slots=True)\nclass Ctx:\n    session: Any\n    number: int = 1"
ATTRS = "@attrs.define\nclass Ctx:\n    _session: Any\n    number: int = 1"
ATTRS_INIT_FALSE = (
    "@attrs.define\nclass Ctx:\n    number: int = 1\n"
    "    session: Any = attrs.field(init=False, factory=lambda: outer())"
)
PYDANTIC = (
    "class Ctx(pydantic.BaseModel):\n"
    "    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True, extra='allow')\n"
    "    session: Any = None\n    _kept: Any = pydantic.PrivateAttr(None)\n"
    "    def keeping(self, kept):\n        self._kept = kept\n        return self"
)
PLAIN = "class Ctx:\n    def __init__(self, session):\n        self.session = session"
SLOTS = "class Ctx:\n    __slots__ = ('session',)\n    def __init__(self, session):\n        self.session = session"
NAMED = "Ctx = collections.namedtuple('Ctx', 'session number')"
INIT_FALSE = (
    "@dataclasses.dataclass\nclass Ctx:\n    session: Any = dataclasses.field(init=False)\n"
    "    def __post_init__(self):\n        self.session = outer()"
)
OR_IGNORE = '  # or, in class Ctx: __isolated_tasks_ignore__ = ("session",)'
IN_CLASS = '__isolated_tasks_ignore__ = ("{0}",)  # in class Ctx, if it keeps .{0} for other purposes'

# Definitions, lines before the call, the argument, and the argument in the cure, or the cure if it is no call.
ARGUMENTS = {
    "position": ("", "", "session", ""),
    "keyword": ("", "", "ctx=session", ""),
    "not ASCII": ("", "", "ctx={'grüße': 'öß', '🎈': session}", "ctx={'grüße': 'öß'}"),
    "several lines": ("", "", "ctx=[\n        1,  # one\n        session,\n    ]", "ctx=[1]"),
    "list literal": ("", "", "[1, session]", "[1]"),
    "tuple literal": ("", "", "(1, session)", "(1,)"),
    "set literal": ("", "", "{1, session}", "{1}"),
    "set literal of one": ("", "", "{session}", "set()"),
    "dict literal": ("", "", "{'a': 1, 'session': session}", "{'a': 1}"),
    "dict literal, key": ("", "", "{session: 1, 2: 2}", "{2: 2}"),
    "nested literals": ("", "", "{'a': [(1, session)], **{}}", "{'a': [(1,)], **{}}"),
    "literal with an attribute": (PLAIN, "ctx = Ctx(session)", "[1, ctx.session]", "[1]"),
    "list": ("", "ctx = [1, session]", "ctx", "[item for index, item in enumerate(ctx) if index != 1]"),
    "list from a call": (
        "",
        "",
        "list((1, session))",
        "[item for index, item in enumerate(list((1, session))) if index != 1]",
    ),
    "tuple": ("", "ctx = (1, session)", "ctx", "tuple((item for index, item in enumerate(ctx) if index != 1))"),
    "set": ("", "ctx = {1, session}", "ctx", "{item for item in ctx if item is not session}"),
    "frozenset": ("", "ctx = frozenset([session])", "ctx", "frozenset((item for item in ctx if item is not session))"),
    "set, without a name": (
        "",
        "ctx = {1, outer()}",
        "ctx",
        "{item for item in ctx if type(item).__name__ != 'AsyncSession'}",
    ),
    "deque": (
        "",
        "ctx = collections.deque([session])",
        "ctx",
        "[item for index, item in enumerate(ctx) if index != 0]",
    ),
    "dict": ("", "ctx = dict(s=session)", "ctx", "{key: value for key, value in ctx.items() if key != 's'}"),
    "dict, key": ("", "ctx = {session: 1}", "ctx", "{key: value for key, value in ctx.items() if key is not session}"),
    "dict, odd key": (
        "",
        "ctx = {Item: session}",
        "ctx",
        "{key: value for key, value in ctx.items() if value is not session}",
    ),
    "dict in a dict": ("", "ctx = {'a': {'s': session}}", "ctx", "ctx['a'].pop('s')  # before the call"),
    "key in a dict": ("", "ctx = {'a': {session: 1}}", "ctx", "ctx['a'].pop(session)  # before the call"),
    "set in a dict": ("", "ctx = {'a': {session}}", "ctx", "ctx['a'].discard(session)  # before the call"),
    "list in a dict": ("", "ctx = {'a': [session]}", "ctx", "del ctx['a'][0]  # before the call"),
    "tuple in a dict": (
        "",
        "ctx = {'a': (session,)}",
        "ctx",
        "{key: value for key, value in ctx.items() if key != 'a'}",
    ),
    "odd key in a dict": ("", "ctx = {Item: [session]}", "ctx", ""),
    "deep list": (
        "",
        "ctx = [session]\n    for _ in range(19): ctx = [ctx]",
        "ctx",
        f"del ctx{'[0]' * 13}  # before the call",
    ),
    "dict of an object": (PLAIN, "ctx = Ctx({'s': session})", "ctx", "ctx.session.pop('s')  # before the call"),
    "user dict": ("", "ctx = collections.UserDict(s=session)", "ctx", "ctx.data.pop('s')  # before the call"),
    "chain map": ("", "ctx = collections.ChainMap({'s': session})", "ctx", "ctx.maps[0].pop('s')  # before the call"),
    "named tuple": (NAMED, "ctx = Ctx(session, 1)", "ctx", "ctx._replace(session=None)"),
    "dataclass": (DATACLASS, "ctx = Ctx(session)", "ctx", "dataclasses.replace(ctx, session=None)" + OR_IGNORE),
    "dataclass, made in the call": (
        DATACLASS,
        "",
        "Ctx(session)",
        "dataclasses.replace(Ctx(session), session=None)" + OR_IGNORE,
    ),
    "frozen dataclass": (FROZEN, "ctx = Ctx(session)", "ctx", "dataclasses.replace(ctx, session=None)" + OR_IGNORE),
    "dataclass that sets it itself": (INIT_FALSE, "ctx = Ctx()", "ctx", IN_CLASS.format("session")),
    "attrs": (
        ATTRS,
        "ctx = Ctx(session)",
        "ctx",
        "attrs.evolve(ctx, session=None)" + OR_IGNORE.replace("session", "_session"),
    ),
    "attrs that is set by the class": (ATTRS_INIT_FALSE, "ctx = Ctx()", "ctx", IN_CLASS.format("session")),
    "pydantic": (PYDANTIC, "ctx = Ctx(session=session)", "ctx", "ctx.model_copy(update={'session': None})" + OR_IGNORE),
    "pydantic extra": (
        PYDANTIC,
        "ctx = Ctx(x=session)",
        "ctx",
        "ctx.model_copy(update={'x': None})" + OR_IGNORE.replace("session", "x"),
    ),
    "pydantic private": (PYDANTIC, "ctx = Ctx().keeping(session)", "ctx", IN_CLASS.format("_kept")),
    "object": (PLAIN, "ctx = Ctx(session)", "ctx", IN_CLASS.format("session")),
    "object with slots": (SLOTS, "ctx = Ctx(session)", "ctx", IN_CLASS.format("session")),
    "object in a list": (PLAIN, "ctx = [Ctx(session)]", "ctx", IN_CLASS.format("session")),
    "bound method": (
        PLAIN + "\n    def method(self): ...",
        "ctx = Ctx(session)",
        "ctx.method",
        IN_CLASS.format("session"),
    ),
    "namespace": ("", "ctx = types.SimpleNamespace(s=session)", "ctx", "type(ctx)(**{**vars(ctx), 's': None})"),
    "null context": ("", "ctx = contextlib.nullcontext(session)", "ctx", ""),
    "null context in a dict": (
        "",
        "ctx = {'c': contextlib.nullcontext(session)}",
        "ctx",
        "{key: value for key, value in ctx.items() if key != 'c'}",
    ),
    "iterator": ("", "ctx = iter([session])", "ctx", ""),
    "method of the session": ("", "", "session.add", ""),
    "method of a list": ("", "ctx = [session]", "ctx.append", ""),
    "exception": ("", "ctx = ValueError(session)", "ctx", ""),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("case", ARGUMENTS)
async def test_an_argument_without_what_was_refused(snippets, case, start):
    """The call with a copy that does not have it, a line before the call, or a line in a class."""
    definitions, before, argument, cured = ARGUMENTS[case]
    if "  # " not in cured or "# or, " in cured:
        code, mark, words = cured.partition("  # ")
        cured = f"{start}{code})".replace("(work, )", "(work)") + mark + words

    cure = await snippets.cured(STARTS[start].format(definitions=definitions, before=before, argument=argument))

    assert cure == cured


SEVERAL = {
    "list": ("", "ctx = [session, other]", "ctx", ""),
    "list of more": (
        "",
        "ctx = [session, 1, other]",
        "ctx",
        "[item for index, item in enumerate(ctx) if index not in {0, 2}]",
    ),
    "the same one twice": (
        "",
        "ctx = [session, 1, session]",
        "ctx",
        "[item for index, item in enumerate(ctx) if index not in {0, 2}]",
    ),
    "list literal": ("", "", "[session, 1, other]", "[1]"),
    "list literal of nothing else": ("", "", "[session, other]", "[]"),
    "nested literal": ("", "", "{'a': [session], 'b': other}", "{'a': []}"),
    "literal, and what is not": (PLAIN, "kept = Ctx(session)", "[session, kept]", ""),
    "tuple": (
        "",
        "ctx = (session, 1, other)",
        "ctx",
        "tuple((item for index, item in enumerate(ctx) if index not in {0, 2}))",
    ),
    "six": ("", "ctx = [*([session] * 6), 1]", "ctx", ""),
    "set": (
        "",
        "ctx = {session, 1, other}",
        "ctx",
        (
            "{item for item in ctx if item is not session and item is not other}",
            "{item for item in ctx if item is not other and item is not session}",
        ),
    ),
    "set, without names": (
        "",
        "ctx = {outer(), 1, outer()}",
        "ctx",
        "{item for item in ctx if type(item).__name__ != 'AsyncSession'}",
    ),
    "dict": (
        "",
        "ctx = {'a': session, 'b': 1, 'c': other}",
        "ctx",
        "{key: value for key, value in ctx.items() if key not in {'a', 'c'}}",
    ),
    "dict, odd keys": (
        "",
        "ctx = {Item: session, 'b': 1, int: other}",
        "ctx",
        "{key: value for key, value in ctx.items() if value is not session and value is not other}",
    ),
    "dict of lists": (
        "",
        "ctx = {'a': [session, other], 'b': 1}",
        "ctx",
        "{key: value for key, value in ctx.items() if key != 'a'}",
    ),
    "dict of different depth": (
        "",
        "ctx = {'a': [session], 'b': other, 'c': 1}",
        "ctx",
        "{key: value for key, value in ctx.items() if key not in {'b', 'a'}}",
    ),
    "objects in a list": (
        PLAIN,
        "ctx = [Ctx(session), 1, Ctx(other)]",
        "ctx",
        "[item for index, item in enumerate(ctx) if index not in {0, 2}]",
    ),
    "list of different depth": (
        PLAIN,
        "ctx = [[[session], Ctx(other)], 1]",
        "ctx",
        "[item for index, item in enumerate(ctx) if index != 0]",
    ),
    "key and value": ("", "ctx = {session: other, 1: 1}", "ctx", ""),
    "named tuple": (
        "Ctx = collections.namedtuple('Ctx', 'first second number')",
        "ctx = Ctx(session, other, 1)",
        "ctx",
        "ctx._replace(first=None, second=None)",
    ),
    "dataclass": (
        "@dataclasses.dataclass\nclass Ctx:\n    first: Any\n    second: Any\n",
        "ctx = Ctx(session, other)",
        "ctx",
        "dataclasses.replace(ctx, first=None, second=None)" + OR_IGNORE.replace('("session",)', '("first", "second")'),
    ),
    "attrs": (
        "@attrs.define\nclass Ctx:\n    first: Any\n    _second: Any\n",
        "ctx = Ctx(session, other)",
        "ctx",
        "attrs.evolve(ctx, second=None, first=None)" + OR_IGNORE.replace('("session",)', '("_second", "first")'),
    ),
    "object": (
        "class Ctx:\n    def __init__(self, a, b):\n        self.a, self.b = a, b",
        "ctx = Ctx(session, other)",
        "ctx",
        '__isolated_tasks_ignore__ = ("a", "b")  # in class Ctx, if it keeps .a and .b for other purposes',
    ),
    "namespace": (
        "",
        "ctx = types.SimpleNamespace(s=session, o=other)",
        "ctx",
        "type(ctx)(**{**vars(ctx), 's': None, 'o': None})",
    ),
    "default factory": ("", "ctx = collections.defaultdict(lambda: session)", "ctx", "dict(ctx)"),
    "default factory, deeper": (
        "",
        "ctx = {'a': collections.defaultdict(lambda: session)}",
        "ctx",
        "{key: value for key, value in ctx.items() if key != 'a'}",
    ),
    "default factory and value": ("", "ctx = collections.defaultdict(lambda: session, a=other)", "ctx", ""),
    "cause": ("", "ctx = ValueError()\n    ctx.__cause__ = ValueError(session)", "ctx", ""),
    "partial, and what it is of": (
        "",
        "def inner(number): return session",
        "functools.partial(inner, other)",
        "",
    ),
    "two closures": ("", "ctx = lambda: (session, other)", "ctx", ""),
    "two defaults": ("", "def ctx(a=session, b=other): ...", "ctx", ""),
}


@pytest.mark.parametrize("case", SEVERAL)
async def test_all_that_would_be_refused_is_left_out(snippets, case):
    """The call that the cure makes is not refused for another one; where there is no short way, the argument goes."""
    definitions, before, argument, cured = SEVERAL[case]
    before = f"other = outer()\n    {before}"

    cure = await snippets.cured(SPAWNED.format(definitions=definitions, before=before, argument=argument))

    if "in class Ctx, " not in str(cured):
        cured = (cured,) if isinstance(cured, str) else cured
        parts = [text.partition("  # ") for text in cured]
        cured = {f"scope.spawn(work, {code})".replace("(work, )", "(work)") + "".join(rest) for code, *rest in parts}
    assert cure in cured


SEVERAL_ARGUMENTS = {
    "needed": (
        "first, second",
        "session, other",
        "scope.spawn(work)  # and work() without its parameters 'first' and 'second': it has a session of its own",
    ),
    "three": (
        "first, second, third",
        "session, other, third=outer()",
        (
            "scope.spawn(work)  # and work() without its parameters 'first', 'second' and 'third': it has a session of "
            "its own"
        ),
    ),
    "in front of another": (
        "first, number, second",
        "session, 1, second=other",
        "scope.spawn(work, 1)  # and work() without its parameters 'first' and 'second': it has a session of its own",
    ),
    "the same one twice": ("first=None, second=None", "session, second=session", "scope.spawn(work)"),
    "not needed": ("first=None, second=None", "session, other", "scope.spawn(work)"),
    "variadic": ("*args", "1, session, 2, other", "scope.spawn(work, 1, 2)"),
    "variadic behind one": (
        "first, *args",
        "session, other",
        "scope.spawn(work)  # and work() without its parameter 'first': it has a session of its own",
    ),
    "one in a list": ("first=None, second=None", "session, [1, other]", "scope.spawn(work)"),
}


@pytest.mark.parametrize("case", SEVERAL_ARGUMENTS)
async def test_all_arguments_that_would_be_refused_are_left_out(snippets, case):
    """With the parameters that took them."""
    parameters, arguments, cured = SEVERAL_ARGUMENTS[case]

    cure = await snippets.cured(f"""
        async def work(session, {parameters}):
            return await one(session)

        async def main():
            session, other = outer(), outer()
            guilty = scope.spawn(work, {arguments})
            return await guilty
        """)

    assert cure == cured


NEEDED = {
    "position": ("other", "session", "work()"),
    "keyword": ("other", "other=session", "work()"),
    "in front of others": ("other, number=1", "session, 1", "work(1)"),
    "with a default, in front of others": ("other=None, number=1", "session, 1", "work(1)"),
    "keyword-only": ("*, other", "other=session", "work()"),
}


@pytest.mark.parametrize("case", NEEDED)
async def test_a_parameter_for_a_session_goes_with_its_argument(snippets, case):
    """Where the call would not fit without the argument, or would mean something else."""
    parameters, arguments, call = NEEDED[case]

    cure = await snippets.cured(f"""
        @isolated_session(Session)
        async def work(session, {parameters}):
            return await one(session)

        async def main():
            session = outer()
            guilty = work({arguments})
            return await guilty
        """)

    assert cure == f"{call}  # and work() without its parameter 'other': it has a session of its own"


async def test_an_argument_of_a_variadic_function_needs_no_parameter(snippets):
    """It is left out, and nothing else changes."""
    cure = await snippets.cured("""
        async def work(session, *args, **kwargs):
            return await one(session)

        async def main():
            session = outer()
            guilty = scope.spawn(work, 1, session, 3, x=2)
            return await guilty
        """)

    assert cure == "scope.spawn(work, 1, 3, x=2)"


# ---- Functions, and what is made of them: the definitions, the call, and the cure.

INNER = "async def inner(session, number=1):\n    return await one(session)\n"
LAST = "async def inner(number, session):\n    return await one(session)\n"
ROWS = "def rows(session):\n    yield session\n"
CALLABLE = (
    "class Inner:\n    async def __call__(self, session, number):\n        return await one(session)\ninner = Inner()\n"
)
CALLS_IT = "async def work(session, call):\n    return await call()\n"
CALLS_SYNC = "async def work(session, call):\n    return await one(call())\n"
CALLS_WITH_ONE = "async def work(session, call):\n    return await call(1)\n"
CALLS_BACK = "async def work(session, callback):\n    return await callback()\n"
AWAITS_IT = "async def work(session, coro):\n    return await coro\n"
ISOLATED = "@isolated_session(Session)\n"
ITS_SESSION = "  # work() calls it with the session of the unit"
IN_PLACE = "  # in work(), in place of its parameter {!r}: with the session of the unit"

FUNCTIONS = {
    "partial": (
        INNER + CALLS_IT,
        "scope.spawn(work, functools.partial(inner, session, 1))",
        "scope.spawn(work, functools.partial(inner, number=1))" + ITS_SESSION,
    ),
    "partial of an isolated function's argument": (
        INNER + ISOLATED + CALLS_IT,
        "work(functools.partial(inner, session, 1))",
        "work(functools.partial(inner, number=1))" + ITS_SESSION,
    ),
    "partial, keyword": (
        INNER + CALLS_IT,
        "scope.spawn(work, functools.partial(inner, session=session, number=1))",
        "scope.spawn(work, functools.partial(inner, number=1))" + ITS_SESSION,
    ),
    "partial, last": (
        LAST + CALLS_IT,
        "scope.spawn(work, functools.partial(inner, 1, session))",
        "scope.spawn(work, functools.partial(inner, 1))" + ITS_SESSION,
    ),
    "partial, made before": (
        INNER + CALLS_IT,
        "call = functools.partial(inner, session, 1)\nscope.spawn(work, call)",
        "functools.partial(inner, number=...)" + ITS_SESSION,
    ),
    "partial, made before, last": (
        LAST + CALLS_IT,
        "call = functools.partial(inner, 1, session)\nscope.spawn(work, call)",
        "functools.partial(inner, ...)" + ITS_SESSION,
    ),
    "partial, made before, keyword": (
        INNER + CALLS_IT,
        "call = functools.partial(inner, session=session, number=1)\nscope.spawn(work, call)",
        "functools.partial(inner, number=...)" + ITS_SESSION,
    ),
    "partial of no function": (
        CALLABLE + CALLS_IT,
        "scope.spawn(work, functools.partial(inner, number=1, session=session))",
        "scope.spawn(work, functools.partial(inner, number=1))" + ITS_SESSION,
    ),
    "spawned partial": (
        INNER,
        "scope.spawn(functools.partial(inner, session), 1)",
        "scope.spawn(inner, 1)",
    ),
    "spawned partial with more": (
        "async def inner(session, number, more=2):\n    return await one(session)\n",
        "scope.spawn(functools.partial(inner, session, 1), more=3)",
        "scope.spawn(inner, 1, more=3)",
    ),
    "spawned coroutine": (
        INNER + AWAITS_IT,
        "scope.spawn(work, inner(session, 1))",
        "scope.spawn(inner, 1)",
    ),
    "spawned coroutine, keyword": (
        INNER + AWAITS_IT,
        "scope.spawn(work, inner(number=1, session=session))",
        "scope.spawn(inner, number=1)",
    ),
    "spawned coroutine, last": (
        LAST + AWAITS_IT,
        "scope.spawn(work, inner(1, session))",
        "await inner(1, session)" + IN_PLACE.format("coro"),
    ),
    "coroutine of a method": (
        "class Repo:\n    async def inner(self, session):\n        return await one(session)\nrepo = Repo()\n"
        + AWAITS_IT,
        "scope.spawn(work, repo.inner(session))",
        "scope.spawn(repo.inner)",
    ),
    "coroutine": (
        INNER + ISOLATED + AWAITS_IT,
        "work(inner(session, 1))",
        "await inner(session, 1)" + IN_PLACE.format("coro"),
    ),
    "coroutine, made before": (
        INNER + ISOLATED + AWAITS_IT,
        "coro = inner(session, 1)\nwork(coro)",
        "await inner(...)" + IN_PLACE.format("coro"),
    ),
    "coroutine, stars": (
        INNER + ISOLATED + AWAITS_IT,
        "coro = inner(*(session, 1))\nwork(coro)",
        "await inner(...)" + IN_PLACE.format("coro"),
    ),
    "generator": (
        ROWS + "async def work(session, each):\n    for row in each:\n        return await one(row)\n",
        "scope.spawn(work, rows(session))",
        "rows(session)" + IN_PLACE.format("each"),
    ),
    "async generator": (
        "async def rows(session):\n    yield session\n"
        + ISOLATED
        + "async def work(session, each):\n    async for row in each:\n        return await one(row)\n",
        "work(rows(session))",
        "rows(session)" + IN_PLACE.format("each"),
    ),
    "closure of a coroutine": (
        AWAITS_IT,
        "async def inner():\n    return await one(session)\nscope.spawn(work, inner())",
        "async def inner(session):" + ITS_SESSION,
    ),
    "closure": (
        CALLS_IT,
        "async def inner():\n    return await one(session)\nscope.spawn(work, inner)",
        "async def inner(session):" + ITS_SESSION,
    ),
    "closure with parameters": (
        CALLS_WITH_ONE,
        "async def inner(number):\n    return await one(session)\nscope.spawn(work, inner)",
        "async def inner(session, ...):" + ITS_SESSION,
    ),
    "closure of a plain function": (
        CALLS_SYNC,
        "def inner():\n    return session\nscope.spawn(work, inner)",
        "def inner(session):" + ITS_SESSION,
    ),
    "lambda": (
        CALLS_SYNC,
        "scope.spawn(work, lambda: session)",
        "scope.spawn(work, lambda session: session)" + ITS_SESSION,
    ),
    "lambda with parameters": (
        "async def work(session, call):\n    return await one(call(1, 2))\n",
        "scope.spawn(work, lambda a, b=2: session)",
        "scope.spawn(work, lambda session, a, b=2: session)" + ITS_SESSION,
    ),
    "lambda, made before": (
        CALLS_SYNC,
        "inner = lambda: session\nscope.spawn(work, inner)",
        "lambda session: ..." + ITS_SESSION,
    ),
    "spawned closure": (
        "",
        "async def work(own, number):\n    return await one(session)\nscope.spawn(work, 1)",
        "session = own  # first line of work(): the session of the unit",
    ),
    "isolated closure": (
        "",
        ISOLATED + "async def work(own):\n    return await one(session)\nwork()",
        "session = own  # first line of work(): the session of the unit",
    ),
    "closure of a method": (
        "",
        "class Repo:\n    async def work(self, own):\n        return await one(session)\nscope.spawn(Repo().work)",
        "session = own  # first line of work(): the session of the unit",
    ),
    "closure of any arguments": (
        "",
        "async def work(*args, key=1):\n    return await one(session)\nscope.spawn(work)",
        "session = args[0]  # first line of work(): the session of the unit",
    ),
    "default": (
        "",
        "async def work(own, number, other=session):\n    return await one(other)\nscope.spawn(work, 1)",
        "other = own  # first line of work(), in place of its parameter 'other'",
    ),
    "keyword default": (
        "",
        ISOLATED + "async def work(own, *, other=session):\n    return await one(other)\nwork()",
        "other = own  # first line of work(), in place of its parameter 'other'",
    ),
    "default of a callback": (
        CALLS_BACK,
        "async def callback(other=session):\n    return await one(other)\nscope.spawn(work, callback)",
        "other=None  # in place of the default of callback(): work() gives it the session of the unit",
    ),
    "closure over two": (
        "",
        "other = outer()\nasync def work(own):\n    return await one(session) and await one(other)\nscope.spawn(work)",
        "other = session = own  # first line of work(): the session of the unit",
    ),
    "two defaults": (
        "",
        "async def work(own, a=session, b=session):\n    return await one(a) and await one(b)\nscope.spawn(work)",
        "a = b = own  # first line of work(), in place of its parameters 'a' and 'b'",
    ),
    "spawned partial of two": (
        "async def inner(session, number, other=None):\n    return await one(session)\n",
        "scope.spawn(functools.partial(inner, session, 1, other=session))",
        "scope.spawn(inner, 1)",
    ),
    "partial of two": (
        "async def inner(session, other=None, number=1):\n    return await one(session)\n" + CALLS_IT,
        "scope.spawn(work, functools.partial(inner, session, session, 1))",
        "scope.spawn(work, functools.partial(inner, number=1))" + ITS_SESSION,
    ),
    "partial of two, made before": (
        "async def inner(session, other=None, number=1):\n    return await one(session)\n" + CALLS_IT,
        "call = functools.partial(inner, session, session, 1)\nscope.spawn(work, call)",
        "functools.partial(inner, number=...)" + ITS_SESSION,
    ),
    "coroutine with two": (
        "async def inner(session, other): ...\nasync def work(session, coro=None):\n    return await one(session)\n",
        "scope.spawn(work, inner(session, session))",
        "scope.spawn(work)",
    ),
    "object of a method": (
        PLAIN.replace("Ctx", "Repo") + "\n    async def work(self, session):\n        return await one(session)\n",
        "scope.spawn(Repo(session).work)",
        '__isolated_tasks_ignore__ = ("session",)  # in class Repo, if it keeps .session for other purposes',
    ),
}


@pytest.mark.parametrize("case", FUNCTIONS)
async def test_a_function_is_given_the_session_of_the_unit(snippets, case):
    """Not one that it was made with, in whatever way."""
    definitions, calls, cured = FUNCTIONS[case]
    *before, call = calls.split("\n")
    body = "\n    ".join(["session = outer()", *before, f"guilty = {call}", "return await guilty"])

    cure = await snippets.cured(f"{definitions}\n\nasync def main():\n    {body}\n")

    assert cure == cured


AFTER_COMMIT = {
    "session": ("work, session", "work"),
    "dict": ("work, {'a': 1, 'b': session}", "work, {'a': 1}"),
    "partial": ("functools.partial(inner, session), 1", "inner, 1"),
    "coroutine": ("work, inner(session, 1)", "inner, 1"),
}


@pytest.mark.parametrize("case", AFTER_COMMIT)
async def test_a_unit_that_waits_for_a_commit(snippets, case):
    """``spawn_after_commit`` has the parent's session as its first argument, which stays."""
    arguments, cured = AFTER_COMMIT[case]

    cure = await snippets.cured(f"""
        async def inner(session, number):
            return await one(session)

        async def work(session, ctx=None):
            return await one(session)

        async def main():
            session = outer()
            await session.connection()
            guilty = scope.spawn_after_commit(session, {arguments})
            await session.commit()
            return await guilty
        """)

    assert cure == f"scope.spawn_after_commit(session, {cured})"


IN_SESSION = {
    "argument": ("other", "work.in_session(session, other)", "work.in_session(session)"),
    "with others": ("number, other", "work.in_session(session, 1, other)", "work.in_session(session, 1)"),
    "keyword": ("*, key=None", "work.in_session(session, key=other)", "work.in_session(session)"),
    "method": ("other=None", "Repo().work.in_session(session, other)", "Repo().work.in_session(session)"),
    "method of the class": (
        "other=None",
        "Repo.work.in_session(Repo(), session, other)",
        "Repo.work.in_session(Repo(), session)",
    ),
    "list": ("other", "work.in_session(session, [1, other])", "work.in_session(session, [1])"),
}


@pytest.mark.parametrize("case", IN_SESSION)
async def test_another_session_for_in_session(snippets, case):
    """The cure does not say that the function has a session of its own: it runs in the one that it was given."""
    parameters, call, cured = IN_SESSION[case]
    source = f"""{HEAD}
@isolated_session(Session)
async def work(session, {parameters}):
    return (await session.execute(sqlalchemy.text("select 1"))).scalar()

class Repo:
    @isolated_session(Session)
    async def work(self, session, {parameters}):
        return (await session.execute(sqlalchemy.text("select 1"))).scalar()

async def main():
    session, other = outer(), outer()
    guilty = {call}
    return await guilty
"""
    error = await snippets.refusal(source)

    words = (
        "" if "[" in call else "  # and work() without a parameter for it: it runs in the session that is given first"
    )
    assert error.cure == cured + words
    assert error.why.startswith("in_session() runs the function in the session that it is given")
    if "Repo" not in call and "key" not in call:
        assert await snippets.run(Reader(source, error.cure).apply()) == 1


async def test_another_session_for_in_session_without_its_source(snippets):
    """It is said there too."""
    source = f"""{HEAD}
@isolated_session(Session)
async def work(session, *args): ...

async def main():
    arguments = outer(), [outer()]
    return work.in_session(outer(), *arguments)
"""
    error = await snippets.refusal(source)

    assert error.cure == (
        "work.in_session(session, ...)  # without arg 1 and arg 2 -> [0]: it runs in the session that is given first"
    )


async def test_a_session_and_an_instance_are_cured_in_words(snippets):
    """One is to be left out, and the other to be loaded again; in `in_session` there is a session already."""
    source = f"""{HEAD}
@isolated_session(Session)
async def work(session, *args): ...

async def main():
    session = outer()
    session.add(item := Item(name='a'))
    return CALL
"""

    spawned = await snippets.refusal(source.replace("CALL", "scope.spawn(work, 1, item, session)"), InstancePassedError)
    inside = await snippets.refusal(source.replace("CALL", "work.in_session(outer(), session, [item])"))

    words = "work(...)  # without arg {}, and with a key in place of arg {}: "
    assert spawned.cure == words.format(3, 2) + "the unit has a session of its own"
    assert inside.cure == words.format(1, "2 -> [0]") + "it runs in the session that is given first"


async def test_more_than_five_places_are_named_by_their_arguments(snippets):
    """A list of a thousand sessions does not make an error of a thousand paths."""
    error = await snippets.refusal(f"""{HEAD}
@isolated_session(Session)
async def work(session, *args): ...

async def main():
    arguments = [outer() for _ in range(6)], outer()
    return work(*arguments)
""")

    assert error.cure == "work(...)  # without arg 2 and arg 1: the unit has a session of its own"


async def test_a_coroutine_for_in_session(snippets):
    """There is nothing to spawn: it is made inside of the function."""
    error = await snippets.refusal(f"""{HEAD}
async def inner(session): ...

@isolated_session(Session)
async def work(session, coro): ...

async def main():
    return await work.in_session(outer(), inner(outer()))
""")

    assert re.fullmatch(
        r"await inner\(.*\)  # in work\(\), in place of arg 1: with the session of the unit", error.cure
    )


async def test_a_helper_in_the_closure_is_given_the_session(snippets):
    """It is not the function that is spawned which has to change its first line."""
    source = f"""{HEAD}
async def main():
    session = outer()
    async def helper():
        return await one(session)
    async def work(own):
        return await helper()
    return await scope.spawn(work)
"""
    error = await snippets.refusal(source)

    assert error.cure == "async def helper(session):  # work() calls it with the session of the unit"
    assert (
        await snippets.run(
            source.replace("await helper()", "await helper(own)").replace("helper():", "helper(session):")
        )
        == 1
    )


async def test_the_other_cure_of_a_copyable_object(snippets):
    """The comment behind the call is a line for the class, which cures it as well."""
    source = HEAD + STARTS["work("].format(definitions=DATACLASS, before="ctx = Ctx(session)", argument="ctx")
    error = await snippets.refusal(source)
    line = error.cure.partition("in class Ctx: ")[2]

    assert await snippets.run(source.replace("class Ctx:", f"class Ctx:\n    {line}")) == 1


async def test_a_method_of_what_is_refused_cannot_be_the_unit(snippets):
    """A session class with a method of its own: the cure is a function that is given its session."""
    source = (
        HEAD
        + """
from sqlalchemy.ext.asyncio import AsyncSession

class OurSession(AsyncSession):
    async def job(self, session):
        return await one(self)

async def main():
    ours = OurSession()
    guilty = scope.spawn(ours.job)
    return await guilty
"""
    )
    error = await snippets.refusal(source)

    line = (
        "async def work(session, ...): ...  # a function that is given its session, in place of OurSession.job -> self"
    )
    assert error.cure == line
    function = line.partition("  # ")[0].replace("(session, ...): ...", "(session): return await one(session)")
    cured = source.replace("async def main", f"{function}\n\nasync def main").replace("ours.job", "work")
    assert await snippets.run(cured) == 1


# ---- Mapped instances: definitions, the lines before the call, the call, the cures one after the other.

STORED = """
async def stored(session):
    items = [Item(name='a'), Item(name='b')]
    session.add_all(items)
    await session.commit()
    return (await session.execute(sqlalchemy.select(Item).order_by(Item.name))).scalars().all()
"""
ONE = "async def work(session, item):\n    assert item in session and item.name == 'a'\n    return await one(session)\n"
ALL = (
    "async def work(session, items):\n    assert all(item in session for item in items) and len(items) == 2\n"
    "    return await one(session)\n"
)
IN_DICT = (
    "async def work(session, ctx):\n    item = ctx['item']\n    assert item in session\n    return await one(session)\n"
)
IN_OBJECT = (
    "async def work(session, ctx):\n    item = ctx.item\n    assert item in session\n    return await one(session)\n"
)
LOAD = "  # in work(): item = await session.get(Item, item)"
LOAD_ALL = "  # in work(): items = [await session.get(Item, key) for key in items]"
TWO = (
    "async def work(session, item, other):\n    assert item in session and other in session and item is not other\n"
    "    return await one(session)\n"
)
IN_DICT_TWICE = (
    "async def work(session, ctx):\n    item, other = ctx['item'], ctx['other']\n"
    "    assert item in session and other in session and item is not other\n    return await one(session)\n"
)
IN_OBJECT_TWICE = IN_DICT_TWICE.replace("['item']", ".item").replace("['other']", ".other")
VALUES = "async def work(session, values):\n    assert values['name'] == 'a'\n    return await one(session)\n"
LOAD_BOTH = "  # in work(): await session.get(Item, ctx{}); await session.get(Item, ctx{})"
LOAD_CTX_ITEM = "  # in work(): await session.get(Item, ctx.item)"
CTX = "class Ctx:\n    item: Any"

INSTANCES = {
    "attached": (
        ONE,
        "item = (await stored(session))[0]",
        "scope.spawn(work, item)",
        ["scope.spawn(work, item.id)" + LOAD],
    ),
    "keyword": (ISOLATED + ONE, "item = (await stored(session))[0]", "work(item=item)", ["work(item=item.id)" + LOAD]),
    "expired": (
        ONE,
        "item = (await stored(session))[0]\nsession.expire(item)",
        "scope.spawn(work, item)",
        ["scope.spawn(work, sqlalchemy.inspect(item).identity)" + LOAD],
    ),
    "expired and detached": (
        ONE,
        "item = (await stored(session))[0]\nawait session.commit()\nawait session.close()",
        "scope.spawn(work, item)",
        ["scope.spawn(work, sqlalchemy.inspect(item).identity)" + LOAD],
    ),
    "pending": (
        ONE,
        "item = Item(name='a')\nsession.add(item)",
        "scope.spawn(work, item)",
        [
            "await session.commit()  # before the call: the instance of Item has no row yet, and no key to pass",
            "scope.spawn(work, sqlalchemy.inspect(item).identity)" + LOAD,
        ],
    ),
    "list": (
        ALL,
        "items = await stored(session)",
        "scope.spawn(work, items)",
        ["scope.spawn(work, [item.id for item in items])" + LOAD_ALL],
    ),
    "tuple": (
        ALL,
        "items = tuple(await stored(session))",
        "scope.spawn(work, items)",
        ["scope.spawn(work, [item.id for item in items])" + LOAD_ALL],
    ),
    "set": (
        ALL,
        "items = set(await stored(session))",
        "scope.spawn(work, items)",
        ["scope.spawn(work, [item.id for item in items])" + LOAD_ALL],
    ),
    "dict": (
        IN_DICT,
        "ctx = {'item': (await stored(session))[0]}",
        "scope.spawn(work, ctx)",
        ["scope.spawn(work, {**ctx, 'item': ctx['item'].id})  # in work(): await session.get(Item, ctx['item'])"],
    ),
    "dataclass": (
        IN_OBJECT + f"\n@dataclasses.dataclass\n{CTX}\n",
        "ctx = Ctx((await stored(session))[0])",
        "scope.spawn(work, ctx)",
        ["scope.spawn(work, dataclasses.replace(ctx, item=ctx.item.id))" + LOAD_CTX_ITEM],
    ),
    "two arguments": (
        TWO,
        "item, other = await stored(session)",
        "scope.spawn(work, item, other=other)",
        ["scope.spawn(work, item.id, other=other.id)" + LOAD + "; other = await session.get(Item, other)"],
    ),
    "one is expired": (
        ALL,
        "items = await stored(session)\nsession.expire(items[1])",
        "scope.spawn(work, items)",
        ["scope.spawn(work, [sqlalchemy.inspect(item).identity for item in items])" + LOAD_ALL],
    ),
    "one is pending": (
        ALL,
        "items = [(await stored(session))[0], Item(name='c')]\nsession.add(items[1])",
        "scope.spawn(work, items)",
        [
            "await session.commit()  # before the call: the instance of Item has no row yet, and no key to pass",
            "scope.spawn(work, [sqlalchemy.inspect(item).identity for item in items])" + LOAD_ALL,
        ],
    ),
    "dict of two": (
        IN_DICT_TWICE,
        "item, other = await stored(session)\nctx = {'item': item, 'other': other}",
        "scope.spawn(work, ctx)",
        [
            "scope.spawn(work, {**ctx, 'item': ctx['item'].id, 'other': ctx['other'].id})"
            + LOAD_BOTH.format("['item']", "['other']")
        ],
    ),
    "named tuple of two": (
        IN_OBJECT_TWICE + "Ctx = collections.namedtuple('Ctx', 'item other')\n",
        "ctx = Ctx(*(await stored(session)))",
        "scope.spawn(work, ctx)",
        ["scope.spawn(work, ctx._replace(item=ctx.item.id, other=ctx.other.id))" + LOAD_BOTH.format(".item", ".other")],
    ),
    "dataclass of two": (
        IN_OBJECT_TWICE + f"\n@dataclasses.dataclass\n{CTX}\n    other: Any\n",
        "ctx = Ctx(*(await stored(session)))",
        "scope.spawn(work, ctx)",
        [
            "scope.spawn(work, dataclasses.replace(ctx, item=ctx.item.id, other=ctx.other.id))"
            + LOAD_BOTH.format(".item", ".other")
        ],
    ),
    "state": (
        ONE,
        "item = (await stored(session))[0]\nstate = sqlalchemy.inspect(item)",
        "scope.spawn(work, state)",
        ["scope.spawn(work, state.identity)" + LOAD],
    ),
    "states": (
        ALL,
        "items = await stored(session)\nstates = [sqlalchemy.inspect(item) for item in items]",
        "scope.spawn(work, states)",
        ["scope.spawn(work, [item.identity for item in states])" + LOAD_ALL],
    ),
    "variables": (
        VALUES,
        "item = (await stored(session))[0]",
        "scope.spawn(work, vars(item))",
        [
            "scope.spawn(work, {key: value for key, value in vars(item).items() if key != '_sa_instance_state'})",
        ],
    ),
    "named tuple": (
        IN_OBJECT + "Ctx = collections.namedtuple('Ctx', 'item')\n",
        "ctx = Ctx((await stored(session))[0])",
        "scope.spawn(work, ctx)",
        ["scope.spawn(work, ctx._replace(item=ctx.item.id))" + LOAD_CTX_ITEM],
    ),
}


@pytest.mark.parametrize("case", INSTANCES)
async def test_an_instance_is_loaded_again_by_its_key(snippets, case):
    """In the session of the unit; nothing is read that would have to be loaded."""
    definitions, before, call, cures = INSTANCES[case]
    lines = "\n    ".join(["session = outer()", *before.split("\n"), f"guilty = {call}", "return await guilty"])
    source = f"{HEAD}{STORED}{definitions}\n\nasync def main():\n    {lines}\n"

    for cure in cures:
        await snippets.empty()
        error = await snippets.refusal(source, InstancePassedError)
        assert error.cure == cure
        source = Reader(source, error.cure).apply()

    await snippets.empty()
    assert await snippets.run(source) == 1


GENERIC = {
    "mixed list": ("items = [(await stored(session))[0], 1]", "scope.spawn(work, items)", "arg 1 -> [0]"),
    "deep": ("ctx = {'items': (await stored(session))[:1]}", "scope.spawn(work, ctx)", "arg 1 -> ['items'][0]"),
    "odd key": ("ctx = {Item: (await stored(session))[0]}", "scope.spawn(work, ctx)", "arg 1 -> [<DeclarativeMeta>]"),
    "deep, two": (
        "ctx = {'items': await stored(session)}",
        "scope.spawn(work, ctx)",
        "arg 1 -> ['items'][0] and arg 1 -> ['items'][1]",
    ),
    "argument and list": (
        "items = await stored(session)",
        "scope.spawn(work, items[0], [items[1]])",
        "arg 1 and arg 2 -> [0]",
    ),
    "of different depth": (
        "items = await stored(session)\nctx = [items[0], [items[1]]]",
        "scope.spawn(work, ctx)",
        "arg 1 -> [0] and arg 1 -> [1][0]",
    ),
    "key and value": (
        "items = await stored(session)\nctx = {items[0]: items[1]}",
        "scope.spawn(work, ctx)",
        "arg 1 -> [<Item>] and arg 1 -> .keys()",
    ),
    "a value, and another's key": (
        "items = await stored(session)\nctx = {'a': items[1], items[0]: 1}",
        "scope.spawn(work, ctx)",
        "arg 1 -> ['a'] and arg 1 -> .keys()",
    ),
    "dict of six": (
        "ctx = dict.fromkeys(range(6), (await stored(session))[0])",
        "scope.spawn(work, ctx)",
        "arg 1",
    ),
    "state in an object": (
        "items = await stored(session)\nctx = types.SimpleNamespace(state=sqlalchemy.inspect(items[0]))",
        "scope.spawn(work, ctx)",
        "arg 1 -> .state",
    ),
    "what is dirty": (
        "items = await stored(session)\nitems[0].name = 'c'",
        "scope.spawn(work, session.dirty)",
        "arg 1 -> {...}",
    ),
    "dict key": ("ctx = {(await stored(session))[0]: 1}", "scope.spawn(work, ctx)", "arg 1 -> .keys()"),
    "list of another class": (
        "class Items(list): ...\nitems = Items((await stored(session))[:1])",
        "scope.spawn(work, items)",
        "arg 1 -> [0]",
    ),
    "stars": ("items = await stored(session)", "scope.spawn(work, *items[:1])", "arg 1"),
    "object": (
        "class Ctx: ...\nctx = Ctx()\nctx.item = (await stored(session))[0]",
        "scope.spawn(work, ctx)",
        "arg 1 -> .item",
    ),
}


@pytest.mark.parametrize("case", GENERIC)
async def test_an_instance_that_is_deeper_has_a_general_cure(snippets, case):
    """What to write in the function, and which key it has to be given."""
    before, call, path = GENERIC[case]
    lines = "\n    ".join(
        ["session = outer()", *before.split("\n"), f"guilty = {call}", "return await guilty"],
    )
    await snippets.empty()

    error = await snippets.refusal(
        f"{HEAD}{STORED}async def work(session, *ctx): ...\n\nasync def main():\n    {lines}\n", InstancePassedError
    )

    words = (
        f"the keys of {path} in their place"
        if " and " in path or "range(6)" in before
        else f"the key of {path} in its place"
    )
    assert error.cure == f"await session.get(Item, key)  # in work(), given {words}"


def test_a_key_of_several_columns():
    """It is passed as a tuple, which is what ``session.get()`` takes."""

    class Pair(declarative_base()):
        __tablename__ = "pairs"
        left = sa.Column("l", sa.Integer, primary_key=True)
        right = sa.Column("r", sa.Integer, primary_key=True)

    pair = Pair(left=1, right=2)
    call = ast.parse("work(pair)", mode="eval").body
    path = (Node("argument", 0, pair),)
    finding = Finding((), (path,), "work", 0, 1, ("pair",), is_needed=True, in_session=False)

    cure = cure_for(finding, CallSite("app.py", 1, call, None))

    assert cure == "work((pair.left, pair.right))  # in work(): pair = await session.get(Pair, pair)"


# ---- Where the call cannot be rewritten.

INDIRECT = {
    "stars": ("arguments = (session,)", "work(*arguments)", "arg 1"),
    "two stars": ("arguments = {'ctx': session}", "work(**arguments)", "arg 'ctx'"),
    "map": ("", "next(map(work, [session]))", "arg 1"),
    "wrapper": ("def call(*args): return work(*args)", "call(session)", "arg 1"),
    "partial": ("", "functools.partial(work, session)()", "arg 1"),
    "table of functions": ("table = {'job': work}", "table['job'](session)", "arg 1"),
    "partial that is spawned": ("", "scope.spawn(functools.partial(work, session))", "arg 1"),
    "spawn in a partial": ("", "functools.partial(scope.spawn, work, session)()", "arg 1"),
}


@pytest.mark.parametrize("case", INDIRECT)
async def test_an_indirect_call_has_a_cure_in_words(snippets, case):
    """Never a line that calls something else without its argument."""
    before, call, path = INDIRECT[case]

    error = await snippets.refusal(f"""{HEAD}
@isolated_session(Session)
async def work(session, ctx=None): ...

async def main():
    session = outer()
    {before}
    return {call}
""")

    assert error.cure == f"work(...)  # without {path}: the unit has a session of its own"


ALIASES = {
    "another name": ("job = work", "job(session)", "job()"),
    "attribute": ("jobs = types.SimpleNamespace(job=work)", "jobs.job(session)", "jobs.job()"),
    "spawn": ("spawn = scope.spawn", "spawn(work, session)", "spawn(work)"),
    "options": ("", "scope.options(name='x').spawn(work, session)", "scope.options(name='x').spawn(work)"),
}


@pytest.mark.parametrize("case", ALIASES)
async def test_a_function_under_another_name_is_known(snippets, case):
    """What is called is looked up, not only its name."""
    before, call, cured = ALIASES[case]

    cure = await snippets.cured(f"""
        @isolated_session(Session)
        async def work(session, ctx=None):
            return await one(session)

        async def main():
            session = outer()
            {before}
            guilty = {call}
            return await guilty
        """)

    assert cure == cured


async def test_a_call_by_a_library(LiteSession):
    """A background task calls from the library's own code: the error shows that line, and says what to leave out."""

    @isolated_session(LiteSession)
    async def work(session, number):
        return number

    with pytest.raises(SessionPassedError) as caught:
        await BackgroundTask(work, LiteSession(), 1)()
    assert "starlette" in caught.value.where
    assert caught.value.cure == "work(...)  # without arg 1: the unit has a session of its own"

    await BackgroundTask(work, 1)()


async def test_a_call_by_the_loop(LiteSession):
    """There is no line of the user's; the line of asyncio's is shown, and the cure says what to leave out."""
    seen = []

    @isolated_session(LiteSession)
    async def work(session, other=None): ...

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: seen.append(context["exception"]))
    loop.call_soon(work, LiteSession())
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    (error,) = seen
    assert error.where
    assert error.cure == "work(...)  # without arg 1: the unit has a session of its own"


async def test_a_call_without_source(LiteSession):
    """From ``exec``, or a prompt: the error has the line number, and the cure says what to leave out."""

    @isolated_session(LiteSession)
    async def work(session, number): ...

    code = compile("\n\nwork(session, 1)", "<stdin>", "exec")
    for bad, cure in (
        ({"session": LiteSession(), "work": work}, "work(...)  # without arg 1: the unit has a session of its own"),
        (
            {"session": {"a": LiteSession()}, "work": work},
            "work(...)  # without arg 1 -> ['a']: the unit has a session of its own",
        ),
    ):
        with pytest.raises(SessionPassedError) as caught:
            exec(code, bad)  # noqa: S102 -- as a prompt does
        assert caught.value.where == "<stdin>:3"
        assert caught.value.cure == cure


FALLBACKS = {
    "partial": (
        "functools.partial(inner, session, 1)",
        "functools.partial(inner, number=...)  # work() calls it with the session of the unit",
    ),
    "partial of a builtin": (
        "functools.partial(isinstance, session)",
        "functools.partial(isinstance)  # work() calls it with the session of the unit",
    ),
    "coroutine": (
        "inner(session)",
        "await inner(...)  # in work(), in place of its parameter 'ctx': with the session of the unit",
    ),
    "lambda": ("lambda: session", "lambda session: ...  # work() calls it with the session of the unit"),
    "object": (
        "Ctx(session)",
        '__isolated_tasks_ignore__ = ("session",)  # in class Ctx, if it keeps .session for other purposes',
    ),
    "namespace": (
        "types.SimpleNamespace(s=session)",
        "work(...)  # without arg 1 -> .s: the unit has a session of its own",
    ),
}


@pytest.mark.parametrize("case", FALLBACKS)
async def test_cures_without_the_source_of_the_call(snippets, case):
    """Each still says what to write, and where."""
    argument, cure = FALLBACKS[case]

    error = await snippets.refusal(f"""{HEAD}
{INNER}
{DATACLASS}

@isolated_session(Session)
async def work(session, ctx=None): ...

async def main():
    session = outer()
    return work(*[{argument}])
""")

    assert error.cure == cure


async def test_what_is_unstarted_and_whose_parameter_has_no_name(snippets):
    """Behind ``*args`` it is named by its position."""
    error = await snippets.refusal(f"""{HEAD}
def rows(session):
    yield session

@isolated_session(Session)
async def work(session, *args): ...

async def main():
    return work(1, rows(outer()))
""")

    assert error.cure == "rows(outer())  # in work(), in place of arg 2: with the session of the unit"
