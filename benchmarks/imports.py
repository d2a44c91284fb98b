"""What importing the package costs an application that has imported SQLAlchemy."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from statistics import median
from typing import NamedTuple

_SQLALCHEMY = "import sqlalchemy.ext.asyncio"
_BOTH = "import sqlalchemy.ext.asyncio, sa_isolated_tasks"
# The time of the processor: on a busy machine the clock tells how long a process had to wait for one.
_CODE = "from time import process_time\nstarted = process_time()\n{}\nprint(process_time() - started)"


class Imported(NamedTuple):
    """*milliseconds* over SQLAlchemy's import, and *ratio* to it."""

    milliseconds: float
    ratio: float

    def __str__(self) -> str:
        return f"{self.milliseconds:.1f} ms over `{_SQLALCHEMY}`, {self.ratio:.2f} of what that takes"


def measure(pairs: int, seed: int = 0) -> Imported:
    """The medians over pairs of new processes, in either order."""
    order = random.Random(seed)  # noqa: S311 -- no secret
    _seconds(_BOTH)  # the files are compiled and in the cache of the disk
    took = [{code: _seconds(code) for code in order.sample([_SQLALCHEMY, _BOTH], 2)} for _ in range(pairs)]
    return Imported(
        median(pair[_BOTH] - pair[_SQLALCHEMY] for pair in took) * 1e3,
        median(pair[_BOTH] / pair[_SQLALCHEMY] for pair in took) - 1,
    )


def _seconds(code: str) -> float:
    # Compiled files may be written, or each process would compile everything again.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", _CODE.format(code)]
    ran = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return float(ran.stdout)
