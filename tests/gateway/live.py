"""The gateway on a real socket, before simulated models or a scripted upstream; with `room`, a verifier."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import aiohttp
import orjson
from uvicorn.server import ServerState

from consort.config_serve import ServeConfig, ServedModel
from consort.gateway.app import close
from consort.gateway.keys import Door
from consort.gateway.ledger import Ledger
from consort.gateway.pool import Pool
from consort.gateway.serve import server_config
from consort.gateway.service import Service
from consort.inference.cache import OFF
from consort.inference.mixture import Guide
from consort.types import LM, DraftedLM
from tests.inference.consorts import says

SMALL, LARGE = "it opens at nine in the morning", "the clinic opens at 9, except on Sundays"
CHAT = "/v1/chat/completions"


@dataclass
class Live:
    service: Service
    url: str
    http: aiohttp.ClientSession

    async def post(self, path: str = CHAT, **body: Any) -> tuple[int, Any]:
        async with self.http.post(self.url + path, json=body) as response:
            return response.status, orjson.loads(await response.read())

    async def ask(self, text: str = "when?", **more: Any) -> tuple[int, Any]:
        return await self.post(messages=[{"role": "user", "content": text}], **more)

    async def stream(self, text: str = "when?", **more: Any) -> list[Any]:
        """The data of every event, [DONE] as it stands."""
        body = {"messages": [{"role": "user", "content": text}], "stream": True, **more}
        async with self.http.post(self.url + CHAT, json=body) as response:
            lines = (await response.read()).split(b"\n\n")
        data = [line.removeprefix(b"data: ") for line in lines if line]
        return ["[DONE]" if each == b"[DONE]" else orjson.loads(each) for each in data]


@asynccontextmanager
async def live(
    folder: Path,
    *,
    edges: Sequence[LM] | None = None,
    cloud: LM | None = None,
    room: int = 0,
    guides: tuple[Guide, ...] = (),
    measured_alike: float = OFF,
    **config: Any,
) -> AsyncIterator[Live]:
    ledger = Ledger(folder)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    serve = replace(ServeConfig(strategy="cascade", threshold=0.0), **config)
    price = ServedModel(price_in=1.0, price_out=10.0)
    service = Service(
        serve,
        edges=tuple(edges) if edges is not None else (says("small", SMALL),),
        cloud=cloud if cloud is not None else says("large", LARGE),
        door=Door(folder / "keys.json"),
        ledger=ledger,
        prices={"large": price},
        alike=measured_alike,
        guides=guides,
    )
    if room:
        service.pool = Pool(service, cast("DraftedLM", service.cloud), room=room)
    # uvicorn's own protocol without its server, which looks only ten times a second whether it shall end
    config_of_server = server_config(service)
    config_of_server.load()
    state = ServerState()
    protocol = functools.partial(
        config_of_server.http_protocol_class, config=config_of_server, server_state=state, app_state={}
    )
    server = await asyncio.get_running_loop().create_server(protocol, sock=listening)
    try:
        async with aiohttp.ClientSession() as http:
            yield Live(service, f"http://127.0.0.1:{listening.getsockname()[1]}", http)
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        while state.connections or state.tasks:
            await asyncio.sleep(0.001)
        await close(service)


def text_of(events: Sequence[Any]) -> str:
    text = ""
    for event in events:
        for choice in event["choices"] if event != "[DONE]" else []:
            piece = choice["delta"].get("content") or ""
            text = piece if event.get("consort", {}).get("anew") else text + piece
    return text
