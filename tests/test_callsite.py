"""The user's call is found, and its source is read, whatever it looks like."""

from __future__ import annotations

import ast
import functools
import linecache
import types

import pytest

from sa_isolated_tasks import _callsite
from sa_isolated_tasks._callsite import CallSite, Source, find_call


def as_package(function):
    """The function as if it were the package's own."""
    return types.FunctionType(function.__code__, {**function.__globals__, "__name__": "sa_isolated_tasks.x"})


spawn = as_package(lambda *_args, **_kwargs: find_call())


def line_number(text):
    (number,) = (number for number, line in enumerate(linecache.getlines(__file__), 1) if line.strip() == text)
    return number


def test_the_innermost_frame_of_the_user_is_found():
    """With file, line and source."""
    site = spawn("here")

    number = line_number('site = spawn("here")')
    assert (site.filename, site.lineno) == (__file__, number)
    assert str(site) == f'{__file__}:{number}: site = spawn("here")'
    assert ast.unparse(site.call) == "spawn('here')"


def test_the_call_on_a_line_of_several_is_the_one_that_runs():
    """By the columns that the compiler has left, which count bytes."""
    sites = [spawn("ü"), spawn("→", [spawn("inner")]), spawn(*["é"])]

    assert [ast.unparse(site.call) for site in sites] == ["spawn('ü')", "spawn('→', [spawn('inner')])", "spawn(*['é'])"]


def test_a_call_of_many_lines_is_read_whole():
    """With its comments, strings and continuation lines."""
    site = spawn(
        1,  # one ü
        text="""two
        lines""",
        key=spawn,
    )

    assert ast.unparse(site.call) == "spawn(1, text='two\\n        lines', key=spawn)"


def test_what_is_no_call_has_no_call():
    """An attribute, an operator or a ``with`` may lead into the package as well."""

    class Uses:
        attribute = property(as_package(lambda self: find_call()))
        __add__ = as_package(lambda self, other: find_call())

    assert (Uses().attribute.call, (Uses() + 1).call) == (None, None)
    assert Uses().attribute.callee == ""


@pytest.mark.parametrize("name", [None, 3, "sa_isolated_tasks_of_somebody_else", "other"])
def test_whose_frame_it_is_depends_on_the_module(name):
    """Also of code without a module; a name that only begins like the package's is another."""
    names = {"spawn": spawn, "__name__": name}
    code = compile("site = spawn(1)", "<of nobody>", "exec")

    exec(code, names)  # noqa: S102 -- as a prompt does

    assert names["site"].filename == "<of nobody>"


def test_code_without_source_has_a_line_number():
    """From a prompt, or ``exec``."""
    names = {"spawn": spawn, "__name__": "other"}

    exec(compile("\n\nsite = spawn(1)", "<stdin>", "exec"), names)  # noqa: S102 -- as a prompt does

    assert (str(names["site"]), names["site"].call) == ("<stdin>:3", None)


@pytest.mark.parametrize("after", ["\n\n\n", "x = (((\n", "site = spam; 'a'\n", ""])
def test_a_file_that_has_changed_does_no_harm(tmp_path, after):
    """It was edited after it was loaded: there is no call to show, or a line that is no call."""
    path = tmp_path / "changed.py"
    source = "site = spawn(1)\n"
    names = {"spawn": spawn, "__name__": "other"}
    code = compile(source, str(path), "exec")
    path.write_text(after)
    linecache.checkcache(str(path))

    exec(code, names)  # noqa: S102 -- as a prompt does

    assert names["site"].call is None
    assert names["site"].lineno == 1


@pytest.mark.parametrize("positions", [(None,) * 4, (1, None, None, None), (1, 1, None, None), (1, 1, 0, None)])
def test_code_without_columns_has_no_call(positions):
    """``python -X no_debug_ranges`` leaves none."""
    code = types.SimpleNamespace(co_positions=lambda: iter([positions]), co_filename=__file__)
    frame = types.SimpleNamespace(f_code=code, f_lasti=0, f_globals={})

    assert _callsite._running_call(frame) is None


def test_a_stack_without_any_other_frame(monkeypatch):
    """Called by C code, from the package's own: the place is not known."""
    monkeypatch.setattr(_callsite.inspect, "currentframe", lambda: None)

    site = find_call()

    assert str(site) == "<unknown>:0"
    assert (site.call, site.name_of(site), site.value_of(ast.Name("x")) is site) == (None, None, False)


def test_names_are_looked_up_where_the_call_is():
    """Local variables before global ones, attributes without running code, and nothing else."""

    class Holder:
        def __init__(self):
            self.attribute = 1

        @property
        def computed(self):
            return pytest.fail("a property was read")

    holder = Holder()
    functools = "a local variable"
    site = spawn(1)

    def value(text):
        return site.value_of(ast.parse(text, mode="eval").body)

    assert value("holder") is holder
    assert value("functools") == "a local variable"
    assert value("linecache") is linecache
    assert value("holder.attribute") == 1
    assert value("holder.computed") is vars(Holder)["computed"]
    unknown = value("nowhere")
    assert unknown is value("holder.nothing") is value("nowhere.attribute") is value("holder[1]") is value("1")
    assert (site.name_of(holder), site.name_of(linecache), site.name_of(object())) == ("holder", "linecache", None)
    assert functools


def source_of(text, position=0):
    call = ast.parse(text, mode="eval").body
    return Source(call, [[*call.args, *(keyword.value for keyword in call.keywords)][position]])


def test_a_call_is_written_without_an_argument_or_with_another_one():
    """By position, by name; everything else stays."""
    assert source_of("f(1, *two, x=3, **four)").without() == "f(*two, x=3, **four)"
    assert source_of("f(1, x=3)", 1).without() == "f(1)"
    assert source_of("a.f(1, x=3)", 1).having("y + 1") == "a.f(1, x=y + 1)"
    assert source_of("f(1)").having(ast.Name("z")) == "f(z)"


@pytest.mark.parametrize(
    ("text", "expected"), [("f(a)", True), ("f(a.b.c)", True), ("f(g())", False), ("f(g().b)", False)]
)
def test_what_can_be_written_twice(text, expected):
    """A variable, or an attribute of one."""
    assert source_of(text).is_path is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f(g(1))", "g(1)"),
        ("f(a.g(1))", "a.g(1)"),
        ("f(h(1))", None),
        ("f(g(*x))", None),
        ("f(g)", None),
        ("f(g()())", None),
    ],
)
def test_an_argument_that_is_a_call_of_something(text, expected):
    """Only if its own arguments can be told apart."""
    call = source_of(text).call_of("g")

    assert (call and ast.unparse(call)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, bad, [bad]]", "[1, []]"),
        ("(bad, 1)", "(1,)"),
        ("{bad, 2}", "{2}"),
        ("{bad}", "set()"),
        ("{bad: 1, 2: bad, 3: 4, **{5: bad}}", "{3: 4, **{}}"),
        ("{'a': [bad.itself]}", "{'a': []}"),
    ],
)
def test_a_literal_is_cut(text, expected):
    """Of what stands for the object, at any depth."""
    bad = types.SimpleNamespace()
    bad.itself = bad
    site = spawn(1)

    assert ast.unparse(site.cut_out([bad], ast.parse(text, mode="eval").body)[0]) == expected


@pytest.mark.parametrize("text", ["[1, 2]", "{1: 2}", "{1}", "f(bad)", "bad", "[f(bad)]"])
def test_what_is_not_in_a_literal_is_left(text):
    """The very same tree comes back."""
    bad = object()
    site = spawn(bad)
    tree = ast.parse(text, mode="eval").body

    assert site.cut_out([bad], tree) == (tree, 0)


def test_the_callee_is_the_last_name():
    """Of a name or an attribute; anything else has none."""
    calls = [ast.parse(text, mode="eval").body for text in ("f()", "a.b.f()", "a[0]()", "f()()")]

    assert [CallSite("", 1, call, None).callee for call in calls] == ["f", "f", "", ""]
    assert functools.partial(CallSite, "", 1, None, None)().callee == ""
