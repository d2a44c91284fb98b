"""
Looks into the arguments of a call, without running any code of theirs.

Nothing is called, loaded, compared or consumed. The walk is iterative, and breadth first so that the shortest path is
found, and visits a bounded number of objects.
"""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, final

from sa_isolated_tasks._callsite import CallSite, Source
from sa_isolated_tasks._holders import are_scalars, children_of, flat_items_of, is_scalar
from sa_isolated_tasks._types import Welcome

__all__ = ["MOST_PLACES", "Finding", "Node", "Path", "joined", "source_of", "text_of", "walk"]

_TEXTS: dict[str, Callable[[Any], str]] = {
    "argument": lambda key: f"arg {key + 1}" if isinstance(key, int) else f"arg {key!r}",
    "owner": str,
    "default": lambda key: f" defaults[{key!r}]",
    "closure": lambda key: f" closure {key!r}",
    "self": lambda _key: " self",
    "item": lambda key: f"[{key}]",
    "value": lambda key: f"[{_short(key)}]",
    "key": lambda _key: ".keys()",
    "member": lambda _key: "{...}",
    "iterator": lambda key: f"<{key}>",
    "field": lambda key: f".{key}",
    "attribute": lambda key: f".{key}",
    "factory": lambda key: f".{key}",
    "chained": lambda key: f".{key}",
    "partial": lambda key: f".args[{key}]" if isinstance(key, int) else f".keywords[{key!r}]",
    "local": lambda key: f" un-started {key[0]} {key[1]}() variable {key[2]!r}",
}
_LONGEST_KEY = 60


def _short(key: object) -> str:
    """A key as it is written, unless it is long or writing it would run code of the user's."""
    text = repr(key) if is_scalar(key) else ""
    return text if 0 < len(text) <= _LONGEST_KEY else f"<{type(key).__name__}>"


@final
class Node:
    """An object that was reached, and from where."""

    __slots__ = ("key", "kind", "parent", "value")

    def __init__(self, kind: str, key: Any, value: Any, parent: Node | None = None) -> None:
        self.kind = kind
        self.key = key
        self.value = value
        self.parent = parent

    @property
    def text(self) -> str:
        return _TEXTS[self.kind](self.key)

    def path(self) -> tuple[Node, ...]:
        nodes: list[Node] = [self]
        while nodes[-1].parent is not None:
            nodes.append(nodes[-1].parent)
        return tuple(reversed(nodes))


Path: TypeAlias = tuple[Node, ...]

_MOST_STEPS = 12
MOST_PLACES = 5
"""So many are named one by one."""


def text_of(path: Path) -> str:
    root, *steps = (node.text for node in path)
    if len(steps) > _MOST_STEPS:
        steps[_MOST_STEPS // 2 : -_MOST_STEPS // 2] = [" ... "]
    return f"{root} -> {''.join(steps).strip()}" if steps else root


def joined(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


class Finding(NamedTuple):
    """
    Where things were found that must not be passed.

    *paths* lead from an argument, or from the function itself, to each, *instances* to mapped instances. *offset* is
    how many arguments stand before the function's own in the source of the call, *positional* how many of its own are
    given by position. *parameters* take the arguments that are to blame, ``""`` where one has no name of its own;
    *is_needed* if the function cannot do without. *in_session* of a call that is given its session on purpose.
    """

    paths: tuple[Path, ...]
    instances: tuple[Path, ...]
    function: str
    offset: int
    positional: int
    parameters: tuple[str, ...]
    is_needed: bool
    in_session: bool

    @property
    def name(self) -> str:
        return self.function.rpartition(".")[2]

    @property
    def path(self) -> Path:
        """The shortest one."""
        return self.paths[0]

    @property
    def text(self) -> str:
        return text_of(self.path)

    @property
    def all_texts(self) -> str:
        """All places, or the arguments if there are too many."""
        few = len(self.paths) <= MOST_PLACES
        return joined([text_of(path) for path in self.paths] if few else [root.text for root in self.roots])

    @property
    def parameters_in_words(self) -> str:
        names = [repr(name) for name in self.parameters if name]
        return f"its parameter{'s' if len(names) > 1 else ''} {joined(names)}"

    @property
    def parameter(self) -> str:
        return self.parameters[0]

    @property
    def root(self) -> Node:
        return self.path[0]

    @property
    def roots(self) -> list[Node]:
        """The arguments that are to blame, each once."""
        return list({id(path[0]): path[0] for path in self.paths}.values())

    @property
    def last(self) -> Node:
        return self.path[-1]

    @property
    def places(self) -> list[Node]:
        return [path[-1] for path in self.paths]

    @property
    def holder(self) -> Any:
        return self.path[-2].value

    @property
    def is_direct(self) -> bool:
        """Whether the argument itself holds what was found."""
        return len(self.path) == len(("argument", "what it holds"))

    def cut(self, length: int) -> Finding | None:
        """The same with paths of that length, if one holder is at the end of them all."""
        holder = self.path[length - 2]
        if any(len(path) < length or path[length - 2] is not holder for path in self.paths):
            return None
        paths = {id(path[length - 1]): path[:length] for path in self.paths}
        return self._replace(paths=tuple(paths.values()))


def source_of(finding: Finding, site: CallSite) -> Source | None:
    """The source of the guilty arguments, if it can be told which they are."""
    call = site.call
    if call is None or any(isinstance(arg, ast.Starred) for arg in call.args):
        return None
    # What is given to `in_session` itself, and the object of a method that is not bound.
    own = len(call.args) - finding.positional if finding.in_session and site.callee == "in_session" else 0
    offset = finding.offset or min(own, 2)
    if len(call.args) != offset + finding.positional or not _is_call_of(finding, call, site):
        return None
    arguments = [_argument_of(root, offset, call) for root in finding.roots]
    known = [argument for argument in arguments if argument is not None]
    return Source(call, known) if len(known) == len(arguments) else None


def _argument_of(root: Node, offset: int, call: ast.Call) -> ast.expr | None:
    key: int | str = root.key if root.kind == "argument" else -1
    if isinstance(key, str):
        return next((keyword.value for keyword in call.keywords if keyword.arg == key), None)
    return call.args[offset + key] if offset + key >= 0 else None


def _is_call_of(finding: Finding, call: ast.Call, site: CallSite) -> bool:
    """The line may call something else, which then makes the call: ``map``, ``asyncio``, a decorator's wrapper."""
    if finding.offset or finding.in_session:
        return site.callee in {"spawn", "spawn_after_commit", "in_session"}
    return site.callee == finding.name or issubclass(type(site.value_of(call.func)), Welcome)


def walk(roots: Iterable[Node], budget: int, ends: Mapping[int, object] = MappingProxyType({})) -> Iterator[Node]:
    """
    Yields what can be reached, nearest first, until *budget* objects were seen.

    But for scalars and plain containers. *ends*, by id, may grow meanwhile: they are not looked into, and each place
    of theirs is yielded, not only the nearest one.
    """
    waiting = deque(roots)
    seen: dict[int, object] = {}
    while waiting:
        node = waiting.popleft()
        if id(node.value) in ends:
            yield node
            continue
        if id(node.value) in seen:
            continue
        # The value is kept, not only its id: an id is used again when what had it is gone.
        seen[id(node.value)] = node.value
        # One huge container must not hide what stands next to it: it gets half of what is left.
        room = budget // 2
        items = flat_items_of(node.value, room)
        if items is None:
            yield node
            if id(node.value) in ends:
                continue
        elif are_scalars(items):
            # Q: Why look twice at a container? A: Most hold scalars only, and a node for each takes ten times as long.
            budget -= len(items)
            continue
        for kind, key, child in islice(children_of(node.value, room), room):
            budget -= 1
            if not is_scalar(child):
                waiting.append(Node(kind, key, child, node))
