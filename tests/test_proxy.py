"""The proxy of the fault tests, before a server that answers each line with itself in capitals."""

from __future__ import annotations

import asyncio
import functools

import pytest
from faulty import deadline
from proxy import Link, Moment, Proxy, Way


class Shouting:
    """The server, and what it has heard."""

    def __init__(self):
        self.heard = []
        self.ended = asyncio.Queue()

    async def serve(self, reader, writer):
        try:
            while line := await reader.readline():
                self.heard.append(line)
                writer.write(line.upper())
            self.ended.put_nowait("EOF")
        except ConnectionResetError:
            self.ended.put_nowait("RST")
        finally:
            writer.close()


@pytest.fixture(autouse=True)
async def _deadline():
    with deadline():
        yield


@pytest.fixture
async def shouting():
    server = Shouting()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    yield server
    listening.close()
    await listening.wait_closed()


@pytest.fixture
async def proxy(shouting):
    async with Proxy(functools.partial(asyncio.open_connection, "127.0.0.1", shouting.port)) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy):
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    yield reader, writer
    writer.transport.abort()


async def ask(client, line):
    reader, writer = client
    writer.write(line)
    return await reader.readline()


async def test_what_is_written_comes_through_in_both_directions(proxy, client):
    """Without a fault nobody notices the proxy, which counts."""
    answers = [await ask(client, b"a\n"), await ask(client, b"b\n")]

    assert ([b"A\n", b"B\n"], 1, 1) == (answers, proxy.accepted, len(proxy.links))


async def test_the_end_of_a_stream_comes_through(client, shouting):
    """EOF of the client reaches the server, and the server's the client."""
    client[1].write_eof()

    assert (b"", "EOF") == (await client[0].read(), await shouting.ended.get())


async def test_a_request_is_trapped_before_the_server_has_it(proxy, client, shouting):
    """The marker is seen, the server has heard nothing of it; after `resume` it goes on."""
    await ask(client, b"a\n")
    trap = proxy.trap(b"commit", Moment.REQUEST, Link.stall)
    answer = asyncio.create_task(ask(client, b"commit\n"))
    await trap.sprung.wait()
    heard = list(shouting.heard)
    trap.link.resume()

    assert ([b"a\n"], b"COMMIT\n") == (heard, await answer)


async def test_an_answer_is_trapped_before_the_client_has_it(proxy, client, shouting):
    """The server has heard the marker and answered, the client waits."""
    trap = proxy.trap(b"commit", Moment.ANSWER, Link.stall)
    answer = asyncio.create_task(ask(client, b"commit\n"))
    await trap.sprung.wait()
    heard, answered = list(shouting.heard), answer.done()
    trap.link.resume()

    assert ([b"commit\n"], False, b"COMMIT\n") == (heard, answered, await answer)


async def test_a_marker_may_come_in_two_pieces(proxy, client, shouting):
    """A trap remembers the end of what it has seen."""
    seen = asyncio.Event()
    first = proxy.trap(b"com", Moment.REQUEST, lambda _: seen.set())
    trap = proxy.trap(b"commit", Moment.REQUEST, Link.stall)
    client[1].write(b"com")
    await seen.wait()
    client[1].write(b"mit\n")
    await trap.sprung.wait()

    assert (first.link, []) == (trap.link, shouting.heard)


async def test_a_trap_springs_once(proxy, client):
    """The second time the marker goes through."""
    struck = []
    proxy.trap(b"commit", Moment.REQUEST, struck.append)
    await ask(client, b"commit\n")
    await ask(client, b"commit\n")

    assert 1 == len(struck)


async def test_a_reset_reaches_both_ends(proxy, client, shouting):
    """RST, not the end of the stream."""
    await ask(client, b"a\n")
    proxy.links[0].reset()
    with pytest.raises(ConnectionResetError):
        await client[0].read()

    assert "RST" == await shouting.ended.get()


async def test_a_half_close_ends_one_direction(proxy, client, shouting):
    """The client gets EOF and the server still hears it; what it answers is lost."""
    trap = proxy.trap(b"b", Moment.ANSWER, Link.close_to_client)
    answers = [await ask(client, b"a\n"), await ask(client, b"b\n")]
    client[1].write_eof()

    assert ([b"A\n", b""], "EOF", [b"a\n", b"b\n"]) == (answers, await shouting.ended.get(), shouting.heard)
    assert trap.sprung.is_set()


async def test_a_half_close_towards_the_server_keeps_the_request_from_it(proxy, client, shouting):
    """The server gets EOF in place of the marker."""
    proxy.trap(b"b", Moment.REQUEST, Link.close_to_server)
    answers = [await ask(client, b"a\n"), await ask(client, b"b\n")]

    assert ([b"A\n", b""], "EOF", [b"a\n"]) == (answers, await shouting.ended.get(), shouting.heard)


async def test_one_direction_can_be_stalled(proxy, client, shouting):
    """The server hears the client, which hears nothing until `resume`."""
    trap = proxy.trap(b"a", Moment.REQUEST, lambda link: link.stall(Way.TO_CLIENT))
    answered = proxy.trap(b"a", Moment.ANSWER, lambda _: None)
    answer = asyncio.create_task(ask(client, b"a\n"))
    await answered.sprung.wait()
    before = (shouting.heard, answer.done())
    trap.link.resume()

    assert (([b"a\n"], False), b"A\n") == (before, await answer)


async def test_a_partition_stalls_what_is_there_and_what_comes(proxy, client, shouting):
    """Connections are accepted and hear nothing until the partition is healed."""
    await ask(client, b"a\n")
    proxy.partition()
    old = asyncio.create_task(ask(client, b"old\n"))
    late = await asyncio.open_connection("127.0.0.1", proxy.port)
    trap = proxy.trap(b"new", Moment.REQUEST, lambda _: None)
    new = asyncio.create_task(ask(late, b"new\n"))
    await trap.sprung.wait()
    heard = list(shouting.heard)
    proxy.heal()
    answers = [await old, await new]
    late[1].transport.abort()

    assert ([b"a\n"], [b"OLD\n", b"NEW\n"]) == (heard, answers)


async def test_a_server_that_is_not_there_ends_the_connection(unused_tcp_port):
    """The client is cut off, and the proxy goes on."""
    async with Proxy(functools.partial(asyncio.open_connection, "127.0.0.1", unused_tcp_port)) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        rest = await reader.read()
        writer.transport.abort()

    assert (b"", []) == (rest, proxy.links)
