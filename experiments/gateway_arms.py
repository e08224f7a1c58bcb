"""What stands behind and beside the gateway in its experiments, each started as a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

import uvicorn

CHUNKS = 20
PAUSE_S = 0.1  # between two chunks of the model called "slow"
PIECES = [f"word{number} " for number in range(CHUNKS)]
TEXT = "".join(PIECES)


# ---- an upstream that answers at once


def event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "far", "choices": [choice]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


USAGE = {"prompt_tokens": 17, "completion_tokens": CHUNKS, "total_tokens": 17 + CHUNKS}
LAST = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "far",
    "choices": [],
    "usage": USAGE,
}
STREAM = [b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"]
STREAM += [framed(event({"content": piece})) for piece in PIECES]
STREAM += [framed(event({}, "stop")), framed(b"data: " + json.dumps(LAST).encode() + b"\n\n")]
STREAM += [framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"]
MESSAGE = {"role": "assistant", "content": TEXT}
BODY = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "far",
        "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
        "usage": USAGE,
    }
).encode()
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY


class Upstream(asyncio.Protocol):
    """HTTP as far as one client needs it: every chunk of a stream is written by itself."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.read = b""

    def data_received(self, data: bytes) -> None:
        self.read += data
        while (end := self.read.find(b"\r\n\r\n")) >= 0:
            head = self.read[:end].lower()
            size = end + 4 + int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(self.read) < size:
                return
            body, self.read = self.read[end + 4 : size], self.read[size:]
            body = body.replace(b" ", b"")
            if b'"model":"slow"' in body:
                self.slowly(iter(STREAM))
                return
            for part in STREAM if b'"stream":true' in body else [WHOLE]:
                self.transport.write(part)

    def slowly(self, parts: Iterator[bytes]) -> None:
        """A chunk, and after a pause the next."""
        part = next(parts, None)
        if part is not None and not self.transport.is_closing():
            self.transport.write(part)
            asyncio.get_running_loop().call_later(PAUSE_S, self.slowly, parts)


async def run_upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


# ---- a bare pass-through


def bare(upstream: int) -> Any:
    import aiohttp
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    sessions: list[aiohttp.ClientSession] = []

    async def forward(request: Request) -> Response:
        if not sessions:
            sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        body = await request.body()
        url = f"http://127.0.0.1:{upstream}/v1/chat/completions"
        answer = await sessions[0].post(url, data=body, headers={"Content-Type": "application/json"})
        if "event-stream" in answer.headers["Content-Type"]:
            return StreamingResponse(answer.content.iter_any(), media_type="text/event-stream")
        return Response(await answer.read(), media_type="application/json")

    return Starlette(routes=[Route("/v1/chat/completions", forward, methods=["POST"])])


def main() -> None:
    name, port = sys.argv[1], int(sys.argv[2])
    if name == "upstream":
        import uvloop

        uvloop.run(run_upstream(port))
    else:
        config = uvicorn.Config(
            bare(int(sys.argv[3])), port=port, log_level="warning", access_log=False, ws="none"
        )
        uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
