"""A link in memory: two ends that send and receive whole messages, on whatever clock the running loop has.

On a `VirtualLoop` a conversation over it is exact and takes no real time; on an ordinary loop it is only as
exact as that loop's timers. Does not carry sockets or HTTP: `proxy` shapes those, by the same model.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

from consort.bench.simulate.clock import sleep_until
from consort.bench.simulate.link import Lane, Link, Outages, lanes


class End:
    """One end of a connection: the device's or the cloud's. Messages arrive whole, in order, once."""

    def __init__(self, wire: Wire, lane: Lane) -> None:
        self.other = self  # until the wire opens the connection
        self.closed = False
        self._wire, self._lane = wire, lane
        self._on_their_way: deque[bytes | None] = deque()  # to this end; None closes
        self._arrived: deque[bytes | None] = deque()
        self._news = asyncio.Event()
        self._broken = False

    async def send(self, message: bytes) -> None:
        """Give a message to the link; it waits its turn there, the sender does not. On a connection that is
        broken or closed here: ConnectionResetError."""
        if self._broken or self.closed:
            raise ConnectionResetError("this connection is broken" if self._broken else "closed at this end")
        self._dispatch(message)

    async def receive(self) -> bytes:
        """The next message. ConnectionResetError when the connection breaks, EOFError when the other end has
        closed it."""
        while not self._arrived:
            if self._broken:
                raise ConnectionResetError("this connection is broken")
            self._news.clear()
            await self._news.wait()
        message = self._arrived[0]
        if message is None:
            raise EOFError("the other end has closed this connection")
        self._arrived.popleft()
        return message

    def close(self) -> None:
        """Send nothing more; what is on its way still arrives."""
        if not (self._broken or self.closed):
            self.closed = True
            self._dispatch(None)
            self._wire.release(self)

    def break_off(self) -> None:
        """What is on its way to this end is lost; what arrived before can still be received."""
        self._broken = True
        self._on_their_way.clear()
        self._news.set()

    def _dispatch(self, message: bytes | None) -> None:
        at_s = self._wire.carry(self._lane, message)
        self.other._on_their_way.append(message)
        # timers of one moment may fire in any order: each takes the message whose turn it is
        self._wire.loop.call_at(at_s, self.other._deliver)

    def _deliver(self) -> None:
        if not self._broken:
            self._arrived.append(self._on_their_way.popleft())
            self._news.set()


class Wire:
    """What a device and the cloud are connected by, for as long as it takes: connections come and go.

    The link's seconds count from here. `frame_bytes` are added to each message: 2 to 14 for WebSocket, 22
    more for TLS. All connections of a wire share its two lanes, in order.
    """

    def __init__(self, link: Link, *, seed: int = 0, frame_bytes: int = 0) -> None:
        self.loop = asyncio.get_running_loop()
        self.up_bytes = self.down_bytes = 0  # messages and frames so far, without segments' headers
        self._begun_s, self._frame_bytes = self.loop.time(), frame_bytes
        self._up, self._down = lanes(link, seed)
        self._outages = Outages(link, seed)
        self._break_timer: asyncio.TimerHandle | None = None
        self._ends: set[End] = set()
        self._dialled: asyncio.Queue[End] = asyncio.Queue()

    async def dial(self) -> End:
        """The device's end of a new connection, a round trip later. ConnectionRefusedError after a break, for
        as long as the outage lasts."""
        for lane in (self._up, self._down):
            if self._outages.refuses(self._now_s()):
                raise ConnectionRefusedError("no connection can be made over this link now")
            await sleep_until(self.carry(lane, None))
        device, cloud = self.open()
        self.loop.call_at(self.carry(self._up, None), self._dialled.put_nowait, cloud)
        return device

    async def accept(self) -> End:
        """The cloud's end of the next connection that is dialled."""
        return await self._dialled.get()

    def open(self) -> tuple[End, End]:
        """A connection that stands already: the device's end and the cloud's."""
        device, cloud = End(self, self._up), End(self, self._down)
        device.other, cloud.other = cloud, device
        self._ends |= {device, cloud}
        self._outages.refuses(self._now_s())  # breaks before this moment are over
        if self._break_timer is None and self._outages.next_s < math.inf:
            # only while something is connected: a clock with nothing else to do must not run on for ever
            at_s = self._outages.next_s
            self._break_timer = self.loop.call_at(self._begun_s + at_s, self._break, at_s)
        return device, cloud

    def cut(self) -> None:
        """Break every connection now, at both ends."""
        self._break(self._now_s())

    def release(self, end: End) -> None:
        """An end that has closed: a connection closed at both can break no more."""
        if end.other.closed:
            self._ends -= {end, end.other}
            if not self._ends:
                self._forget_break()

    def carry(self, lane: Lane, message: bytes | None) -> float:
        """The loop's second at which a message that is sent now has arrived."""
        num_bytes = 0 if message is None else len(message) + self._frame_bytes
        if lane is self._up:
            self.up_bytes += num_bytes
        else:
            self.down_bytes += num_bytes
        return self._begun_s + lane.send(self._now_s(), num_bytes)[-1].at_s

    def _break(self, now_s: float) -> None:
        self._outages.begin(now_s)
        self._up.drop()
        self._down.drop()
        while self._ends:
            self._ends.pop().break_off()
        self._forget_break()

    def _now_s(self) -> float:
        return self.loop.time() - self._begun_s

    def _forget_break(self) -> None:
        if self._break_timer:
            self._break_timer.cancel()
            self._break_timer = None


def connected(link: Link, *, seed: int = 0, frame_bytes: int = 0) -> tuple[End, End]:
    """A standing connection over a link: the device's end and the cloud's."""
    return Wire(link, seed=seed, frame_bytes=frame_bytes).open()
