"""The one place that imports ``gum-ai``, which has no types and, for its screen observer, needs macOS."""

from __future__ import annotations

import sys
from types import ModuleType

# Without this module `import gum` fails on Linux; nothing here looks at a screen.
_screen = ModuleType("gum.observers.screen")
vars(_screen)["Screen"] = type("Screen", (), {})
sys.modules.setdefault(_screen.__name__, _screen)

from gum import gum as Gum  # noqa: E402, N812 -- after the stub; a class that is written as one
from gum.models import Base, Observation, Proposition, observation_proposition  # noqa: E402
from gum.observers import Observer  # noqa: E402
from gum.schemas import Update, get_schema  # noqa: E402

__all__ = ["Base", "Gum", "Observation", "Observer", "Proposition", "Update", "get_schema", "observation_proposition"]
