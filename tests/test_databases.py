"""Which databases the tests run on is said, whatever is there."""

from __future__ import annotations

import databases
import pytest
from databases import Databases


@pytest.fixture
def found(monkeypatch):
    """As another run would find them."""
    monkeypatch.delenv("TEST_POSTGRESQL_URL", raising=False)
    monkeypatch.delenv("TEST_MARIADB_URL", raising=False)
    found = Databases()
    yield found
    found.close()


@pytest.mark.parametrize(
    ("name", "variable", "url"),
    [
        ("asyncpg", "TEST_POSTGRESQL_URL", "postgresql://postgres:secret@127.0.0.1:1"),
        ("mariadb", "TEST_MARIADB_URL", "mysql://root:secret@127.0.0.1:1"),
    ],
)
def test_a_server_that_was_named_and_lets_nobody_in_is_a_problem(found, monkeypatch, name, variable, url):
    """It is said, without the password, and nothing else takes its place."""
    monkeypatch.setenv(variable, url)

    database = found.get(name)

    assert database.url is None
    assert database.problem.startswith(f"the server at {url.replace('secret', '***')}/")
    assert " has no database for the tests: " in database.problem


def test_a_server_on_the_default_port_that_lets_nobody_in_is_somebody_elses(found, monkeypatch):
    """PostgreSQL comes from the wheel then."""
    monkeypatch.setattr(databases, "_listens", lambda _port: True)
    monkeypatch.setattr(databases, "_own", lambda url: f"the server at {url} lets nobody in")
    monkeypatch.setattr(Databases, "_embedded", lambda _self: "from the wheel")

    assert found.get("asyncpg").problem == "from the wheel"
    assert found.get("mariadb").problem == "the server at mysql://root@127.0.0.1:3306 lets nobody in"


def test_a_server_that_is_not_there_is_replaced_by_the_wheels(found, monkeypatch):
    """MariaDB is missing then."""
    monkeypatch.setattr(databases, "_listens", lambda _port: False)
    monkeypatch.setattr(Databases, "_embedded", lambda _self: "from the wheel")

    assert found.get("asyncpg").problem == "from the wheel"
    assert found.get("mariadb").problem == "TEST_MARIADB_URL is not set, and nothing listens on port 3306"
