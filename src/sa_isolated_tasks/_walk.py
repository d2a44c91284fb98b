"""
Looks into the arguments of a call, without running any code of theirs.

Nothing is called, loaded, compared or consumed. The walk is iterative, and breadth first so that the shortest path is
found, and visits a bounded number of objects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, final

from sa_isolated_tasks._holders import are_scalars, children_of, flat_items_of, is_scalar

__all__ = ["Node", "walk"]

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


def walk(roots: Iterable[Node], budget: int) -> Iterator[Node]:
    """
    Yields what can be reached, nearest first, until *budget* objects were seen.

    But for scalars and plain containers.
    """
    waiting = deque(roots)
    seen: dict[int, object] = {}
    while waiting:
        node = waiting.popleft()
        if id(node.value) in seen:
            continue
        # The value is kept, not only its id: an id is used again when what had it is gone.
        seen[id(node.value)] = node.value
        # One huge container must not hide what stands next to it: it gets half of what is left.
        room = budget // 2
        items = flat_items_of(node.value, room)
        if items is None:
            yield node
        elif are_scalars(items):
            # Q: Why look twice at a container? A: Most hold scalars only, and a node for each takes ten times as long.
            budget -= len(items)
            continue
        for kind, key, child in islice(children_of(node.value, room), room):
            budget -= 1
            if not is_scalar(child):
                waiting.append(Node(kind, key, child, node))
