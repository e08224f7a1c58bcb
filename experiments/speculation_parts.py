"""What the experiments on speculation share: prompts, and the real verifier, strategy and engine on a clock
that jumps, where a pass of the cloud takes 40 ms and a level of a draft 4 ms.

Everything is the code that serves: `LocalLM` and its batch, the pool of sessions, the messages, `speculate`.
Replaced are the engine's thread (its steps take stated virtual time), and the socket (a `Wire`).
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np

from consort.bench.simulate import End, Link, Wire
from consort.bench.suite import generate_suite
from consort.config import RuntimeConfig
from consort.errors import UpstreamError
from consort.gateway.keys import LOCAL
from consort.gateway.pool import Pool
from consort.gateway.verifier import converse
from consort.inference.pace import TRIAL_TOKENS, Pace, Rate
from consort.inference.speculative import speculate
from consort.models.connections import unreached
from consort.models.decoding.engine import Engine
from consort.models.decoding.lm import LocalLM
from consort.models.link import Link as Connection
from consort.models.local import load_model
from consort.models.remote import Endpoint
from consort.models.verifier import RESUME_S, Verifier
from consort.types import Consort, Drafter, Message, Note, Request

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("CONSORT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
STEP_S, LEVEL_S = 0.040, 0.004
MASKED_FRAME_BYTES = 6  # a WebSocket header of 2 and a mask of 4; from the cloud there is no mask
PATIENCE = 100  # attempts to connect
AHEAD_S: ContextVar[float] = ContextVar("ahead_s", default=0.0)  # of whoever asks for the time (`two_clocks`)


def zoo_lm(name: str, *, answers: int = 1, sessions: int = 1) -> LocalLM:
    """A bundled model, on the processor, under its own name."""
    model = load_model(f"zoo:{name}", runtime=RuntimeConfig(device="cpu"))
    model.name = name
    return LocalLM(model, answers=answers, sessions=sessions)


class PacedEngine(Engine):
    """The engine as a task of the running loop: each step takes `step_s` of its clock. What is ordered during
    a step is heard at the next, as in the thread."""

    def __init__(self, engine: Engine, after_step: Callable[[], None], step_s: float) -> None:
        self.step_s, self.steps = step_s, 0
        super().__init__(
            engine._open_batch, answers=engine._answers, enter_thread=lambda: None, after_step=after_step
        )
        self._thread.join()
        self._orders = _Orders()
        self._task = asyncio.create_task(self._paced())

    def _run(self) -> None:
        """No thread."""

    def close(self) -> None:
        self._task.cancel()

    async def _paced(self) -> None:
        self._enter_thread()
        while True:
            await self._orders.news.wait()
            self._orders.news.clear()
            while self._obey() and self._busy():
                await asyncio.sleep(self.step_s)
                self._step()
                self.steps += 1
                self._after_step()


class _Orders:
    """A queue that never blocks, and tells when something is put."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self._orders: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, order: Any) -> None:
        self._orders.put(order)
        self.news.set()

    def get(self, block: bool = True) -> Any:
        return self._orders.get(block=False)


def pace_engine(lm: LocalLM, step_s: float) -> PacedEngine:
    """Let a model compute on the running loop's clock."""
    lm._engine.close()
    lm._engine = PacedEngine(lm._engine, lm._deliver, step_s)
    return lm._engine


class Cloud:
    """The cloud's end of a wire: its pool of sessions, and the ways in which it may be gone."""

    def __init__(self, lm: LocalLM, wire: Wire, *, room: int, ahead_s: float) -> None:
        self.wire, self.dark, self.refuse = wire, False, False  # dark: nothing arrives, and nobody says so
        self._lm, self._room = lm, room
        self._conversations: list[asyncio.Task[None]] = []
        self.pool = self._new_pool()
        context = copy_context()
        context.run(AHEAD_S.set, ahead_s)
        self._serving = asyncio.create_task(self._serve(), context=context)

    async def dial(self) -> WireSocket:
        """The device's end of a connection."""
        if self.dark:
            await asyncio.Event().wait()
        if self.refuse:
            raise ConnectionRefusedError("nobody listens")
        return WireSocket(await self.wire.dial(), self)

    async def restart(self) -> None:
        """Another process in its place, which knows of no session."""
        for answering in list(self.pool.answerings.values()):
            await self.pool.end(answering)
        self.pool = self._new_pool()

    async def close(self) -> None:
        tasks = [self._serving, *self._conversations]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.restart()

    def _new_pool(self) -> Pool:
        service = Recorder(SimpleNamespace(deadline_s=600.0))
        return Pool(service, self._lm, room=self._room)  # type: ignore[arg-type]

    async def _serve(self) -> None:
        while True:
            socket = WireSocket(await self.wire.accept(), self)
            self._conversations = [task for task in self._conversations if not task.done()]
            self._conversations.append(asyncio.create_task(converse(socket, self.pool, LOCAL)))


class WireSocket:
    """An end of a wire as what `Verifier` takes for a WebSocket, and `converse` for the web server's."""

    def __init__(self, end: End, cloud: Cloud) -> None:
        self._end, self._cloud = end, cloud

    async def send_bytes(self, data: bytes) -> None:
        if not self._cloud.dark:
            await self._end.send(data)

    send = send_bytes

    async def receive(self) -> bytes | None:
        try:
            data = await self._end.receive()
        except (ConnectionError, EOFError):
            return None
        if self._cloud.dark:
            await asyncio.Event().wait()
        return data

    async def __aiter__(self) -> AsyncIterator[SimpleNamespace]:
        while (data := await self.receive()) is not None:
            yield SimpleNamespace(type=aiohttp.WSMsgType.BINARY, data=data)

    async def close(self) -> None:
        self._end.close()


class WireVerifier(Verifier):
    """A verifier whose connections go over a wire."""

    def __init__(self, cloud: Cloud, lm: LocalLM, resume_s: float) -> None:
        super().__init__(Endpoint(lm.name, "http://wire/v1", lm.name), resume_s=resume_s)
        self._cloud, self.tokenizer, self.is_stale = cloud, lm.tokenizer, False

    async def _opened_link(self) -> Connection:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            socket = await self._cloud.dial()
            return Connection(socket, rtt_s=loop.time() - began_s)  # type: ignore[arg-type]
        except OSError as error:
            raise self._failed(unreached(error)) from None


@dataclass(slots=True)
class Recorder:
    """The part of `Service` that a pool needs; keeps what was recorded."""

    config: SimpleNamespace
    door: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(check=lambda key, **more: None))
    rows: int = 0

    def record(self, row: object) -> None:
        self.rows += 1

    def price(self, model: str, prompt_tokens: int, completion_tokens: int) -> float:
        return 0.0


@asynccontextmanager
async def over_wire(
    lm: LocalLM,
    link: Link,
    *,
    seed: int = 0,
    room: int = 64,
    resume_s: float = RESUME_S,
    ahead_s: float = 0.0,
) -> AsyncIterator[tuple[WireVerifier, Cloud]]:
    """A device's verifier before the cloud's pool, with a link between. Within `two_clocks` the cloud's is
    `ahead_s` ahead."""
    wire = Wire(link, seed=seed, frame_bytes=MASKED_FRAME_BYTES)
    cloud = Cloud(lm, wire, room=room, ahead_s=ahead_s)
    verifier = WireVerifier(cloud, lm, resume_s)
    try:
        for _ in range(PATIENCE):  # the link may be down just now
            try:
                await verifier.connect()
                break
            except UpstreamError:
                await asyncio.sleep(0.05)
        yield verifier, cloud
    finally:
        await verifier.close()
        await cloud.close()


@contextmanager
def two_clocks() -> Iterator[None]:
    """Whatever a cloud's end does reads a clock of its own (`AHEAD_S`); the loop's timers stay one."""
    told = time.monotonic, time.time
    time.monotonic, time.time = (lambda clock=clock: clock() + AHEAD_S.get() for clock in told)
    try:
        yield
    finally:
        time.monotonic, time.time = told


def warm_pace() -> Pace:
    """A gateway's pace after its very first tokens, which it writes without drafts."""
    return Pace(plain=Rate(TRIAL_TOKENS * STEP_S, TRIAL_TOKENS), plain_tokens=TRIAL_TOKENS)


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer: its tokens' text, its time, and what `speculate` noted."""

    text: str
    tokens: int
    seconds: float
    first_s: float
    told: dict[str, Any]


async def streamed(verifier: Verifier, request: Request) -> Timed:
    """The cloud alone, over the same connection."""

    class Nobody:
        """No drafts."""

        name = "nobody"

    return await speculated(verifier, request, Nobody(), Pace(paused=1))  # type: ignore[arg-type]


async def speculated(verifier: Verifier, request: Request, drafter: Drafter, pace: Pace) -> Timed:
    """An answer by `speculate`, from the request to its last token."""
    loop, notes = asyncio.get_running_loop(), list[Note]()
    consort = Consort((), verifier, note=notes.append)
    begun_s, first_s, text, tokens = loop.time(), None, "", 0
    async for chunk in speculate(lambda cloud: (drafter, pace))(request, consort):
        first_s = first_s or loop.time() - begun_s
        text += chunk.text
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    return Timed(text, tokens, loop.time() - begun_s, first_s or 0.0, dict(notes[-1].values))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request's text, of a domain, and what kind of answer it wants."""

    kind: str
    text: str

    def request(self, *, temperature: float, seed: int, max_tokens: int = 96) -> Request:
        return Request(
            (Message("user", self.text),), max_tokens=max_tokens, temperature=temperature, seed=seed
        )


def suite_prompts(count: int, *, kinds: Sequence[str], seed: int = 0) -> list[Prompt]:
    """Test rows of the suite, public and the devices', in turn by kind."""
    suite, rng = generate_suite(), Random(seed)
    rows = [*suite.public["test"], *(row for splits in suite.devices.values() for row in splits["test"])]
    rng.shuffle(rows)
    by_kind = {kind: [row for row in rows if row.skill == kind] for kind in kinds}
    places = range(max(map(len, by_kind.values())))
    found = [
        Prompt(kind, f"{of[place].instruction}\n{of[place].input}")
        for place in places
        for kind, of in by_kind.items()
        if place < len(of)
    ]
    return found[:count]


def spec_bench(lm: LocalLM, *, room: int) -> Iterator[Prompt]:
    """Spec-Bench's questions, cut to their first words where the context leaves no `room` tokens."""
    path = DATA / "prompts" / "spec_bench.jsonl"
    if not path.exists():
        raise SystemExit(f"no prompts at {path}: set CONSORT_DATA")
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        words = row["turns"][0].split(" ")
        left = lm.context_tokens - room - 16  # the template's own
        while len(lm.tokenizer.encode(" ".join(words))) > left:
            words = words[: int(len(words) * 0.9)]
        yield Prompt(row["category"], " ".join(words))


def origin(result: dict[str, Any]) -> str:
    """Where numbers come from, for a table's head."""
    return f"Commit {result['commit']}; {result['hardware']}."


def bootstrap(
    values: Sequence[Sequence[float]], statistic: Callable[[np.ndarray], float], *, draws: int = 2000
) -> tuple[float, float, float]:
    """A statistic of rows [N, ...], and its 95 % interval over resampled rows."""
    rows, rng = np.asarray(values, np.float64), np.random.default_rng(0)
    drawn = [statistic(rows[rng.integers(0, len(rows), len(rows))]) for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(statistic(rows)), float(low), float(high)
