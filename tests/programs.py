"""What the units of the state machine may do: programs of a few steps, made to be drawn and to be read."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Planned(Exception):
    """What a unit raises when its program says so."""


class Odd(BaseException):
    """The same, past every ``except Exception``."""


class End(enum.Enum):
    """How a program ends."""

    RETURN = enum.auto()
    RAISE = enum.auto()
    RAISE_ODD = enum.auto()
    STRAY = enum.auto()
    """A CancelledError, though nobody has cancelled."""
    DUPLICATE = enum.auto()
    """It returns, and the commit fails."""


class How(enum.Enum):
    """How a handle is awaited."""

    PLAIN = enum.auto()
    GATHER = enum.auto()
    GATHER_ALL = enum.auto()
    WAIT_FOR = enum.auto()
    SHIELD = enum.auto()
    GIVE_UP = enum.auto()


@dataclass(frozen=True)
class Write:
    """Inserts a row."""


@dataclass(frozen=True)
class Read:
    """Begins a transaction without a lock."""


@dataclass(frozen=True)
class Finish:
    """Ends the transaction in the middle of the body."""

    commits: bool


@dataclass(frozen=True)
class Stop:
    """Waits for the gate of the unit; *stubborn*: swallows a cancellation there, and returns."""

    stubborn: bool


@dataclass(frozen=True)
class Await:
    """Awaits handles, counted back from the last spawn before this unit's; *careful*: catches what they raise."""

    backs: tuple[int, ...]
    how: How
    careful: bool


@dataclass(frozen=True)
class Spawn:
    """Spawns another unit, in the other scope if *elsewhere*, and awaits it if *follow*."""

    program: Program
    elsewhere: bool
    follow: bool


@dataclass(frozen=True)
class Program:
    """Steps one after the other, and an end."""

    steps: tuple[object, ...]
    end: End


def awaited_by(program, earlier):
    """The units that a program awaits, or one that it spawns."""
    known, found = len(earlier), set()
    for step in program.steps:
        if isinstance(step, Await):
            found.update(earlier[known - 1 - back] for back in step.backs if back < known)
        elif isinstance(step, Spawn):
            found |= awaited_by(step.program, earlier)
    return found
