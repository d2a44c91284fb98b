"""
A TCP proxy between a driver and its server that does harm when it is told to, at a moment that the bytes define.

A `Trap` springs when its marker, say ``COMMIT``, comes from the client: before it goes on, or when the server's answer
to it has come and has not gone on. So a fault in the middle of a commit needs no clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field


class Way(enum.Enum):
    """The two directions of a connection."""

    TO_SERVER = enum.auto()
    TO_CLIENT = enum.auto()


class Moment(enum.Enum):
    """When a trap springs."""

    REQUEST = "before the server has the marker"
    ANSWER = "after the server has answered the marker, and before the client knows"


@dataclass
class Trap:
    """Springs once, for the first connection on which *marker* is seen, and then calls *fault* with it."""

    marker: bytes
    moment: Moment
    fault: Callable[[Link], None]
    sprung: asyncio.Event = field(default_factory=asyncio.Event)
    link: Link | None = None
    _seen_on: Link | None = None
    _tail: dict[Link, bytes] = field(default_factory=dict)

    def inspect(self, link: Link, way: Way, data: bytes) -> None:
        if self.sprung.is_set():
            return
        if way is Way.TO_SERVER and self._seen_on is None and self._holds_marker(link, data):
            self._seen_on = link
            if self.moment is Moment.REQUEST:
                self._spring(link)
        elif way is Way.TO_CLIENT and self._seen_on is link:
            self._spring(link)

    def _holds_marker(self, link: Link, data: bytes) -> bool:
        # It may come in two pieces.
        text = self._tail.get(link, b"") + data
        self._tail[link] = text[-len(self.marker) + 1 :]
        return self.marker in text

    def _spring(self, link: Link) -> None:
        self.link = link
        self.fault(link)
        self.sprung.set()


class Link:
    """One connection through the proxy: two streams of bytes, each of which can be stalled or ended."""

    def __init__(self, client, server, inspect):
        self._readers = {Way.TO_SERVER: client[0], Way.TO_CLIENT: server[0]}
        self._writers = {Way.TO_SERVER: server[1], Way.TO_CLIENT: client[1]}
        self._inspect = inspect
        self._flows = {way: asyncio.Event() for way in Way}
        self._ended = set()
        self.resume()

    async def run(self):
        try:
            async with asyncio.TaskGroup() as pumps:
                for way in Way:
                    pumps.create_task(self._pump(way))
        finally:
            for writer in self._writers.values():
                writer.transport.abort()

    async def _pump(self, way):
        try:
            await self._pass_on(way)
        except OSError:
            # One end has gone: the other is told, unless it may not be told anything.
            await self._flows[way].wait()
            self.reset()

    async def _pass_on(self, way):
        while data := await self._readers[way].read(65536):
            self._inspect(self, way, data)
            await self._flows[way].wait()
            if way not in self._ended:
                self._writers[way].write(data)
                await self._writers[way].drain()
        await self._flows[way].wait()
        self.half_close(way)

    def stall(self, *ways):
        """Nothing goes on, not even the end of the stream; in both directions unless told which."""
        for way in ways or Way:
            self._flows[way].clear()

    def resume(self):
        for flow in self._flows.values():
            flow.set()

    def half_close(self, way):
        """Whoever reads in that direction gets EOF, and no more of what comes; the other direction goes on."""
        if way not in self._ended and not self._writers[way].is_closing():
            self._writers[way].write_eof()
        self._ended.add(way)

    def close_to_client(self):
        self.half_close(Way.TO_CLIENT)

    def close_to_server(self):
        self.half_close(Way.TO_SERVER)

    def reset(self):
        """Both ends get RST: without a linger time ``close`` does not end a connection in good order."""
        self._ended.update(Way)
        for writer in self._writers.values():
            if not writer.is_closing():
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()


class Proxy:
    """
    Listens on a port of its own and passes everything on to a server.

    Args:
        connect: opens a connection to the server, as ``asyncio.open_connection``.
    """

    def __init__(self, connect):
        self._connect = connect
        self._server = None
        self._tasks = set()
        self._traps = []
        self._is_partitioned = False
        self.links = []
        self.accepted = 0
        self._next = asyncio.Event()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self):
        return self._server.sockets[0].getsockname()[1]

    def trap(self, marker, moment, fault):
        """Harm for the connection on which *marker* is seen next."""
        trap = Trap(marker, moment, fault)
        self._traps.append(trap)
        return trap

    async def next_accepted(self):
        """Waits until one more connection has been accepted."""
        self._next.clear()
        await self._next.wait()

    def partition(self):
        """Stalls every connection, and those that are still to come: they are accepted, and that is all."""
        self._is_partitioned = True
        for link in self.links:
            link.stall()

    def heal(self):
        self._is_partitioned = False
        for link in self.links:
            link.resume()

    async def _accept(self, reader, writer):
        self.accepted += 1
        self._next.set()
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            # The end of the proxy. On Python 3.11 asyncio's own callback does not expect it.
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await self._serve(reader, writer)
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _serve(self, reader, writer):
        link = Link((reader, writer), await self._connect(), self._inspect)
        self.links.append(link)
        if self._is_partitioned:
            link.stall()
        try:
            await link.run()
        finally:
            self.links.remove(link)

    def _inspect(self, link, way, data):
        for trap in self._traps:
            trap.inspect(link, way, data)
