"""The example of the race: what docs/why.md shows of it is what it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

ROOT = Path(__file__).parent.parent


def without_times(text):
    return re.sub(r"^ +[0-9.]+ ms", "  ms", text, flags=re.MULTILINE).strip()


@pytest.mark.skipif(sa.__version__.startswith("1."), reason="the example is written for SQLAlchemy 2.0")
def test_the_race_goes_as_the_page_says():
    """Each form, in each order, ends as the page shows it; only the milliseconds differ."""
    shown = re.search(r"```text\n(1\. .*?)```", (ROOT / "docs" / "why.md").read_text(), re.DOTALL)

    finished = subprocess.run(
        [sys.executable, ROOT / "examples" / "race.py"], capture_output=True, text=True, check=True, timeout=60
    )

    assert without_times(shown[1]) == without_times(finished.stdout)
