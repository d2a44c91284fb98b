"""Engines that suffer, on each driver of a server in turn."""

from __future__ import annotations

import pytest
from faulty import Ward, Watcher, deadline, plain_connections, proxy_before, through
from support import reset


@pytest.fixture(autouse=True)
async def _deadline():
    """No fault makes a test hang."""
    with deadline():
        yield


@pytest.fixture
async def ward(server, make_engine):
    """Without a proxy: what ends its connections is the server."""
    healthy = make_engine(server)
    await reset(healthy)
    return Ward(make_engine(server), Watcher(healthy))


@pytest.fixture
async def postgresql_ward(postgresql, make_engine):
    healthy = make_engine(postgresql)
    await reset(healthy)
    return Ward(make_engine(postgresql), Watcher(healthy))


@pytest.fixture
async def proxied(server, make_engine):
    """A proxy before each server, and an engine whose connections go through it."""
    healthy = make_engine(server)
    await reset(healthy)
    async with proxy_before(server) as proxy:
        engine = make_engine(through(proxy, server), **plain_connections(server))
        ward = Ward(engine, Watcher(healthy))
        ward.proxy = proxy
        yield ward
