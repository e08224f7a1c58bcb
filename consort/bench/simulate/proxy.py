"""Actual traffic shaped by a link: a TCP proxy on loopback that hands on each byte when the model says.

Runs on the loop it is started from, which should be precise (`precise.precise_loop`) and have nothing else to
do; `proxy_process` gives it a process of its own. A connection through it costs one round trip before the
first byte. Does not look into what it carries.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from collections import deque
from typing import Literal, TypeAlias

from consort.bench.simulate.clock import sleep_until
from consort.bench.simulate.link import Lane, Link, Outages, lanes

Direction: TypeAlias = Literal["up", "down"]
_MOST_QUEUED_BYTES = 1 << 20  # a direction; beyond, the sender's own buffers fill


class _Side(asyncio.Protocol):
    """One of the two connections that the proxy holds for a client: what it reads goes in `direction` and is
    written at the other side."""

    def __init__(self, shaper: Shaper, direction: Direction) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None
        self._shaper, self._direction = shaper, direction
        self._to_write: deque[tuple[float, bytes | None]] = deque()  # (loop's second, bytes or the end)
        self._queued_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._has_read_end = self._has_written_end = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.other is None:
            transport.pause_reading()  # nothing travels before the handshake
            self._shaper.welcome(self)

    def data_received(self, data: bytes) -> None:
        assert self.other, "reads before its handshake"
        rest = memoryview(data)
        for at_s, num_bytes in self._shaper.carry(self._direction, len(data)):
            self.other.write_at(at_s, bytes(rest[:num_bytes]))
            rest = rest[num_bytes:]
        if self.transport and self.other._queued_bytes > _MOST_QUEUED_BYTES:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._has_read_end = True
        if self.other:
            self.other.write_at(self._shaper.carry(self._direction, 0)[-1][0], None)
        self._close_if_ended()
        return True  # the other direction stays open

    def connection_lost(self, reason: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._shaper.forget(self)
        if self.other and reason:  # a reset is not queued behind anything
            self.other.abort()

    def write_at(self, at_s: float, data: bytes | None) -> None:
        """Keep `data` until the loop's second `at_s`; None ends this direction."""
        self._to_write.append((at_s, data))
        self._queued_bytes += len(data or b"")
        if self._timer is None:
            self._timer = self._shaper.loop.call_at(at_s, self._write_due)

    def abort(self) -> None:
        """Break this connection; nothing more of it is written."""
        if self.transport:
            connection = self.transport.get_extra_info("socket")
            # a reset, which the peer sees as one, not an orderly end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def _write_due(self) -> None:
        self._timer = None
        if not self.transport or self.transport.is_closing():
            return
        now_s, due = self._shaper.loop.time(), []
        while self._to_write and self._to_write[0][0] <= now_s:
            due.append(self._to_write.popleft()[1])
        ended = bool(due) and due[-1] is None
        data = b"".join(piece for piece in due if piece)
        self._queued_bytes -= len(data)
        if data:
            self.transport.write(data)
        if ended:
            with contextlib.suppress(OSError):  # the other end has left already
                self.transport.write_eof()
            self._has_written_end = True
            self._close_if_ended()
        if self._to_write:
            self._timer = self._shaper.loop.call_at(self._to_write[0][0], self._write_due)
        reads = self.other.transport if self.other else None
        if reads and not reads.is_closing() and not reads.is_reading() and self._has_room():
            reads.resume_reading()

    def _has_room(self) -> bool:
        return self._queued_bytes <= _MOST_QUEUED_BYTES // 2

    def _close_if_ended(self) -> None:
        if self._has_read_end and self._has_written_end and self.transport:
            self.transport.close()


class Shaper:
    """Accepts connections and carries them over a link to `upstream` (host, port). The link's seconds count
    from `start`, or from the last `reshape`."""

    def __init__(self, link: Link, upstream: tuple[str, int], *, seed: int = 0) -> None:
        self.loop = asyncio.get_running_loop()
        self.port = 0  # on 127.0.0.1, once started
        self.read_bytes: dict[Direction, int] = {"up": 0, "down": 0}  # from clients, and from upstream
        self._upstream = upstream
        self._sides: set[_Side] = set()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._break_timer: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None
        self._begin(link, seed)

    async def start(self) -> None:
        """Listen on a free port of this machine alone."""
        self._server = await self.loop.create_server(lambda: _Side(self, "up"), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def num_connections(self) -> int:
        """Connections that are open, each side for itself."""
        return len(self._sides)

    def reshape(self, link: Link, *, seed: int = 0) -> None:
        """Another link from now on, its seconds begun anew; connections and what is queued stay."""
        self._begin(link, seed)

    def cut(self) -> None:
        """Break every connection now, at both ends: what is on its way is lost."""
        self._break(self._now_s())

    async def close(self) -> None:
        """Stop listening and break what is open."""
        if self._server:
            self._server.close()
        for task in self._handshakes:
            task.cancel()
        if self._break_timer:
            self._break_timer.cancel()
        for side in list(self._sides):
            side.abort()
        await asyncio.sleep(0)  # the transports close in the loop's next turn

    def welcome(self, client: _Side) -> None:
        """A connection was made to the proxy: one round trip later it reaches upstream."""
        self._sides.add(client)
        task = self.loop.create_task(self._shake_hands(client))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    def forget(self, side: _Side) -> None:
        """A connection has ended."""
        self._sides.discard(side)

    def carry(self, direction: Direction, num_bytes: int) -> list[tuple[float, int]]:
        """When what was read now is to be written: the loop's seconds and bytes, in order."""
        self.read_bytes[direction] += num_bytes
        arrivals = self._lanes[direction].send(self._now_s(), num_bytes)
        return [(self._begun_s + at_s, size) for at_s, size in arrivals]

    def _begin(self, link: Link, seed: int) -> None:
        self._begun_s = self.loop.time()
        up, down = lanes(link, seed)
        self._lanes: dict[Direction, Lane] = {"up": up, "down": down}
        self._outages = Outages(link, seed)
        self._plan_break()

    def _plan_break(self) -> None:
        if self._break_timer:
            self._break_timer.cancel()
        at_s = self._outages.next_s
        if at_s < math.inf:
            self._break_timer = self.loop.call_at(self._begun_s + at_s, self._break, at_s)

    def _break(self, now_s: float) -> None:
        self._outages.begin(now_s)
        for lane in self._lanes.values():
            lane.drop()
        for side in list(self._sides):
            side.abort()
        self._plan_break()

    def _now_s(self) -> float:
        return self.loop.time() - self._begun_s

    async def _shake_hands(self, client: _Side) -> None:
        if self._outages.refuses(self._now_s()):
            client.abort()
            return
        await sleep_until(self.carry("up", 0)[-1][0])
        await sleep_until(self.carry("down", 0)[-1][0])
        self.carry("up", 0)
        upstream = _Side(self, "down")
        upstream.other = client
        try:
            await self.loop.create_connection(lambda: upstream, *self._upstream)
        except OSError:
            client.abort()
            return
        self._sides.add(upstream)
        client.other = upstream
        if client.transport and not client.transport.is_closing():
            client.transport.resume_reading()
        else:  # it has left meanwhile
            upstream.abort()
