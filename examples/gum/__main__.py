"""GUM with its triggers in every setting, the negative control, and a day in less than a minute: docs/gum.md."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from itertools import product
from pathlib import Path

from day import DaySetting, lived
from points import POINTS, Finding, check
from postgresql import postgresql
from program import Setting
from shared_session import SharedSession
from sqlalchemy.engine import URL
from summary import report, write_log
from with_triggers import Triggers

# What passing the session breaks. The set of tasks and the log lines are kept by hand there, and hold.
BROKEN = {1, 2, 3, 6, 7, 8}


def settings(url: URL) -> Iterator[Setting]:
    for triggers in (Triggers, SharedSession):
        for transactional, faster in product((False, True), (True, False)):
            yield Setting(triggers, transactional, faster)
        for faster in (True, False):
            yield Setting(triggers, transactional=True, engine_is_faster=faster, postgresql=url)


def is_as_it_has_to_be(setting: Setting) -> bool:
    findings = check(setting)
    failed = {finding.point for finding in findings if not finding.holds}
    print(f"\n{setting}")
    for point, sentence in POINTS.items():
        print(f"  {'FAILS' if point in failed else 'holds'}  {point}. {sentence}")
        for finding in findings:
            if finding.point == point:
                print(f"            {_short(finding)}")
    if setting.triggers is SharedSession:
        print(f"  Has to fail: {sorted(BROKEN)}. Failed: {sorted(failed)}.")
        return failed >= BROKEN
    return not failed


def _short(finding: Finding) -> str:
    return finding.seen if len(finding.seen) < 180 else f"{finding.seen[:180]} ..."  # noqa: PLR2004 -- a line


def day_is_as_it_has_to_be(setting: DaySetting, updates: int, logs: Path | None) -> bool:
    day = lived(setting, updates)
    print(f"\nA day in less than a minute, {setting.mode}")
    print("\n".join(report(day)))
    if logs is not None:
        path = logs / f"day, {setting.mode}.log"
        write_log(day, path)
        print(f"  the line of every trigger: {path}")
    return day.holds


def main() -> int:
    parser = argparse.ArgumentParser(prog="gum", description=__doc__)
    parser.add_argument("--postgresql-url", default=os.environ.get("TEST_POSTGRESQL_URL"), help="else one from a wheel")
    parser.add_argument("--updates", type=int, default=500, help="of the day")
    parser.add_argument("--logs", type=Path, help="directory for the log lines of the days")
    options = parser.parse_args()
    # What the programs log is watched, and what is left of them after that is nobody's concern.
    logging.getLogger().addHandler(logging.NullHandler())
    print(f"gum-ai {version('gum-ai')}, SQLAlchemy {version('sqlalchemy')}, Python {platform.python_version()}")
    with postgresql(options.postgresql_url) as url:
        verdicts = [is_as_it_has_to_be(setting) for setting in settings(url)]
    for transactional in (False, True):
        day = DaySetting(Triggers, transactional, engine_is_faster=True)
        verdicts.append(day_is_as_it_has_to_be(day, options.updates, options.logs))
    print(f"\n{sum(verdicts)} of {len(verdicts)} are as they have to be.")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
