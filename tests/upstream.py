"""An endpoint that says exactly the bytes a test gives it: real sockets, no HTTP library to be polite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import orjson

EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
HANG = b"<hang>"  # among the bytes: say nothing more, until the client leaves
CUT = b"<cut>"  # among the bytes: close the connection here


def framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(text: str, finish: str | None = None, usage: bool = False) -> bytes:
    body: dict[str, object] = {
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}],
        "model": "upstream",
    }
    if usage:
        body = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    return b"data: " + orjson.dumps(body) + b"\n\n"


def answer(*texts: str) -> list[bytes]:
    """A whole stream: the texts, the end, the usage."""
    events = [event(text) for text in texts] + [event("", "stop"), event("", usage=True), b"data: [DONE]\n\n"]
    return [EVENT_STREAM, *(framed(each) for each in events), b"0\r\n\r\n"]


def refusal(status: int, body: bytes = b"{}") -> list[bytes]:
    head = b"HTTP/1.1 %d No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return [head % (status, len(body)), body]


END = b"0\r\n\r\n"
BEGUN = [EVENT_STREAM, framed(event("It "))]
# what an endpoint may do in place of answering; None: nobody listens
FAULTS: dict[str, list[bytes] | None] = {
    "refuses": None,
    "hangs up": [CUT],
    "says nothing": [HANG],
    "is busy": refusal(429),
    "fails": refusal(500, b"<html>Internal Server Error</html>"),
    "says another protocol": [b"SSH-2.0-OpenSSH\r\n", CUT],
    "says nonsense": [EVENT_STREAM, framed(b"data: }{\n\n"), END],
    "says half a character": [*BEGUN, framed(event("ü").replace("ü".encode(), "ü".encode()[:1])), END],
    "cuts half a character": [*BEGUN, framed(event("ü").partition(b"\xbc")[0]), CUT],
    "breaks off": [*BEGUN, CUT],
    "ends too early": [*BEGUN, END],
    "falls silent": [*BEGUN, HANG],
    "counts nonsense": [*BEGUN, framed(b'data: {"choices":[],"usage":{"prompt_tokens":"many"}}\n\n'), HANG],
    "fails in the stream": [*BEGUN, framed(b'data: {"error":{"message":"no memory"}}\n\n'), END],
}


@dataclass
class Upstream:
    """`scripts`: what each request in turn is answered with; the last one answers all further ones."""

    scripts: Sequence[Sequence[bytes]]
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)  # a client hung up while we were silent
    url: str = ""
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task
        self.serving.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._once(reader, writer):
                    pass
        finally:
            self.serving.discard(task)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _once(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        self.requests.append(head + await reader.readexactly(length))
        script = self.scripts[min(len(self.requests), len(self.scripts)) - 1]
        for data in script:
            if data == CUT:
                return False
            if data == HANG:
                await reader.read()
                self.left.set()
                return False
            writer.write(data)
            await writer.drain()
        return True


@asynccontextmanager
async def upstream(*scripts: Sequence[bytes]) -> AsyncIterator[Upstream]:
    up = Upstream(scripts)
    server = await asyncio.start_server(up.serve, "127.0.0.1", 0)
    up.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        yield up
        while up.serving:
            for task in up.serving:
                task.cancel()
            await asyncio.wait(up.serving)
