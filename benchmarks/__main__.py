"""
``python -m benchmarks``: measures, writes *docs/benchmarks.md*, and says which targets are met.

A target that is missed does not make it fail: a busy machine may miss one.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from tests.databases import Databases

from benchmarks import imports, page
from benchmarks.plan import FULL, QUICK
from benchmarks.results import Results, run
from benchmarks.setup import connected, connected_to_sqlite, postgresql

DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds of fewer units; the page says how long it took"
    )
    parser.add_argument("--print", action="store_true", help="the page is printed, and not written")
    parser.add_argument("--only", choices=["imports"], help="one part alone")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    if arguments.only == "imports":
        print(imports.measure(plan.import_pairs))
        return
    results = asyncio.run(_measure(arguments.quick))
    command = "nox -s bench -- --quick" if arguments.quick else "nox -s bench"
    if arguments.print:
        print(page.text(results, command))
    else:
        page.write(results, command, DOCS)
    for target in results.targets():
        print(f"{'met   ' if target.is_met else 'MISSED'} {target.measured:8.2f} {target.limit:8.2f}  {target.text}")


async def _measure(quick: bool) -> Results:  # noqa: FBT001 -- not public
    databases = Databases()
    try:
        url = postgresql(databases)
        if url is None:
            sys.exit(f"no PostgreSQL: {databases.get('asyncpg').problem}")
        async with connected(url) as setup, connected_to_sqlite() as sqlite:
            return await run(QUICK if quick else FULL, setup, sqlite, lambda line: print(line, file=sys.stderr))
    finally:
        databases.close()


if __name__ == "__main__":
    main()
