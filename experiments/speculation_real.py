"""Speculation over real sockets: bytes as they are on the wire, answers through a network that cuts
connections at any byte, and speed behind the proxy that shapes real traffic.

`consort serve --role cloud`'s own service and web server run in a thread of this process, the cloud's passes
slowed to 40 ms; the device is `Verifier` and `speculate` with the bundled proxy. Bytes: the client's own
counters against a TCP proxy that counts (WebSocket and msgpack included, TCP's and IP's headers not). Cuts: a
proxy that breaks every connection after a random number of bytes, in the middle of messages. Speed: beside
virtual time, for a quiet machine; the load is written down.

    nice -n 10 env OMP_NUM_THREADS=1 python experiments/speculation_real.py [--cut-answers 60] [--prompts 6]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
import uvicorn
from provenance import commit, hardware
from speculation_parts import (
    RESULTS,
    STEP_S,
    Prompt,
    bootstrap,
    origin,
    speculated,
    streamed,
    suite_prompts,
    warm_pace,
    zoo_lm,
)

from consort.bench.simulate import Link, shaped_proxy
from consort.config import Config
from consort.gateway.serve import open_service, server_config
from consort.models.decoding.batch import Batch
from consort.models.decoding.drafters import ModelDrafter
from consort.models.decoding.lm import LocalLM
from consort.models.remote import Endpoint
from consort.models.verifier import RemoteWriting, Verifier
from consort.types import Request

ROUND_TRIPS_S = (0.02, 0.05, 0.1)
MAX_TOKENS = 96


class SlowNetwork:
    """A network each of whose passes takes at least so long."""

    def __init__(self, network, step_s: float) -> None:
        self._network, self.step_s = network, step_s
        self.slots, self.positions = network.slots, network.positions
        self.branches, self.states = network.branches, network.states
        self.keep, self.swap = network.keep, network.swap

    def read(self, *args, **kwargs):
        until_s = time.monotonic() + self.step_s
        logits = self._network.read(*args, **kwargs)
        time.sleep(max(0.0, until_s - time.monotonic()))
        return logits


@contextmanager
def served(step_s: float) -> Iterator[tuple[int, SlowNetwork]]:
    """The cloud's role on a free port of loopback, in a thread."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config()
        serving = replace(config.serve, role="cloud", port=0, state=folder)
        service = open_service(replace(config, serve=serving))
        lm = service.cloud
        assert isinstance(lm, LocalLM)
        slow = SlowNetwork(lm._engine._batch.network, step_s)
        lm._engine._batch = Batch(slow, lm.tokenizer)
        server = uvicorn.Server(server_config(service))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield server.servers[0].sockets[0].getsockname()[1], slow
        finally:
            server.should_exit = True
            thread.join()


@dataclass(slots=True)
class Wiretap:
    """A TCP proxy that counts, and breaks connections after `rng`'s number of bytes where it is given."""

    upstream: int
    rng: Random | None = None
    up_bytes: int = 0
    down_bytes: int = 0
    cuts: int = 0

    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        left = self.rng.randint(700, 3000) if self.rng else 1 << 60  # the handshake takes some 500 bytes

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool) -> None:
            nonlocal left
            while data := await source.read(1 << 16):
                if up:
                    self.up_bytes += len(data)
                else:
                    self.down_bytes += len(data)
                sink.write(data[: max(0, left)])
                left -= len(data)
                if left <= 0:
                    self.cuts += 1
                    return

        tasks = [
            asyncio.create_task(carry(reader, far_writer, up=True)),
            asyncio.create_task(carry(far_reader, writer, up=False)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except ConnectionError:
            pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for each in (writer, far_writer):
                each.transport.abort()


@asynccontextmanager
async def tapped(upstream: int, rng: Random | None = None) -> AsyncIterator[tuple[Wiretap, Verifier]]:
    tap = Wiretap(upstream, rng)
    server = await asyncio.start_server(tap.welcome, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    verifier = Verifier(Endpoint("cloud", f"http://127.0.0.1:{port}/v1", "cloud"), resume_s=20.0)
    try:
        yield tap, verifier
    finally:
        await verifier.close()
        server.close()


async def count_bytes(port: int, proxy: LocalLM, prompts: Sequence[Prompt]) -> dict:
    """Drafts up and tokens down, by the client's counters and by the wire."""
    counted: list[RemoteWriting] = []

    async with tapped(port) as (tap, verifier):
        write = verifier.write

        async def noted(request: Request, **after):
            writing = await write(request, **after)
            counted.append(writing)
            return writing

        verifier.write = noted  # type: ignore[method-assign]
        await verifier.connect()
        await asyncio.sleep(0.2)
        before = tap.up_bytes, tap.down_bytes
        drafter, pace, told = ModelDrafter(proxy, verifier.tokenizer), warm_pace(), []
        for seed, prompt in enumerate(prompts):
            temperature = (0.0, 0.6, 1.0)[seed % 3]
            request = prompt.request(temperature=temperature, seed=seed, max_tokens=MAX_TOKENS)
            told.append(await speculated(verifier, request, drafter, pace))
        await asyncio.sleep(0.2)
        up, down = tap.up_bytes - before[0], tap.down_bytes - before[1]
    drafted, tokens = sum(each.told["drafted"] for each in told), sum(each.tokens for each in told)
    draft_bytes = sum(writing.draft_bytes for writing in counted)
    return {
        "answers": len(told),
        "drafted": drafted,
        "tokens": tokens,
        "up_bytes": up,
        "down_bytes": down,
        "draft_bytes": draft_bytes,
        "sent_bytes": sum(writing.sent_bytes for writing in counted),
        "received_bytes": sum(writing.received_bytes for writing in counted),
        "draft_bytes_a_drafted_token": draft_bytes / drafted,
        "received_bytes_a_token": sum(writing.received_bytes for writing in counted) / tokens,
        "wire_up_bytes_a_drafted_token": up / drafted,
        "wire_down_bytes_a_token": down / tokens,
    }


async def through_cuts(port: int, proxy: LocalLM, prompts: Sequence[Prompt]) -> dict:
    """Answers over connections that break at any byte, against the cloud alone."""
    equal = resumed = tokens = 0
    async with tapped(port) as (_, whole):
        requests = [
            prompt.request(temperature=(0.0, 0.6, 1.0)[seed % 3], seed=seed, max_tokens=MAX_TOKENS)
            for seed, prompt in enumerate(prompts)
        ]
        alone = [await streamed(whole, request) for request in requests]
    async with tapped(port, Random(0)) as (tap, verifier):
        # the tokenizer is larger than what goes through between two cuts
        verifier.tokenizer, verifier.is_stale = whole.tokenizer, False
        drafter = ModelDrafter(proxy, (await verified(verifier)).tokenizer)
        for request, one in zip(requests, alone, strict=True):
            other = await speculated(verifier, request, drafter, warm_pace())
            equal += other.text == one.text and other.tokens == one.tokens
            resumed += other.told["resumed"]
            tokens += other.tokens
    return {
        "answers": len(requests),
        "equal": equal,
        "tokens": tokens,
        "cuts": tap.cuts,
        "resumed": resumed,
    }


async def verified(verifier: Verifier) -> Verifier:
    """Connected, however often that is cut off."""
    while True:
        try:
            await verifier.connect()
            return verifier
        except Exception:  # whatever a cut handshake looks like
            await asyncio.sleep(0.01)


async def timed(port: int, proxy: LocalLM, prompts: Sequence[Prompt]) -> list[dict]:
    verifier = Verifier(Endpoint("cloud", f"http://127.0.0.1:{port}/v1", "cloud"), resume_s=20.0)
    rows = []
    try:
        await verifier.connect()
        drafter, pace = ModelDrafter(proxy, verifier.tokenizer), warm_pace()
        for seed, prompt in enumerate(prompts):
            request = prompt.request(temperature=0.0, seed=seed, max_tokens=MAX_TOKENS)
            alone = await streamed(verifier, request)
            one = await speculated(verifier, request, drafter, pace)
            assert alone.text == one.text, "speculation changed an answer"
            rows.append({"tokens": one.tokens, "alone_s": alone.seconds, "one_s": one.seconds} | one.told)
    finally:
        await verifier.close()
    return rows


def speeds(port: int, proxy: LocalLM, prompts: Sequence[Prompt]) -> list[dict]:
    found = []
    with shaped_proxy(Link(), port) as network:
        for rtt_s in ROUND_TRIPS_S:
            network.reshape(Link(rtt_s, 0.0, 20.0, 20.0))
            rows = asyncio.run(timed(network.port, proxy, prompts))
            seconds = [(row["alone_s"], row["one_s"]) for row in rows]
            ratio, low, high = bootstrap(seconds, lambda of: float(of[:, 0].sum() / of[:, 1].sum()))
            cell = {"rtt_s": rtt_s, "answers": len(rows), "speed_up": ratio, "low": low, "high": high}
            cell["acceptance"] = statistics.mean(row["acceptance"] for row in rows)
            cell["level_ms"], cell["step_ms"] = rows[-1].get("level_ms"), rows[-1].get("step_ms")
            found.append(cell)
            print(cell, file=sys.stderr, flush=True)
    return found


def as_markdown(result: dict) -> str:
    told, cuts = result["bytes"], result["cuts"]
    lines = [
        "# Speculation over real sockets",
        "",
        origin(result),
        "",
        f"Load of the machine {result['load']:.1f} on {result['cores']} cores.",
        "",
        "| bytes | client's counters | wire |",
        "|---" * 3 + "|",
        f"| up, a drafted token ({told['drafted']} tokens) | **{told['draft_bytes_a_drafted_token']:.2f}** "
        f"| {told['wire_up_bytes_a_drafted_token']:.2f} with the requests |",
        f"| down, an answer's token ({told['tokens']} tokens) | **{told['received_bytes_a_token']:.2f}** "
        f"| {told['wire_down_bytes_a_token']:.2f} |",
        "",
        f"Cut connections: {cuts['equal']} of {cuts['answers']} answers are the cloud's own, over "
        f"{cuts['cuts']} cuts and {cuts['resumed']} resumptions.",
        "",
        f"Speed, cloud slowed to {STEP_S * 1000:.0f} ms a pass, through the shaping proxy, greedy:",
        "",
        "| round trip | answers | acceptance | device's level | cloud's pass | speed-up |",
        "|---" * 6 + "|",
        *(
            f"| {row['rtt_s'] * 1000:.0f} ms | {row['answers']} | {row['acceptance']:.2f} "
            f"| {row['level_ms']} ms | {row['step_ms']} ms | {row['speed_up']:.2f} ({row['low']:.2f}, "
            f"{row['high']:.2f}) |"
            for row in result["speed"]
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=6, help="of the bytes and the speeds")
    parser.add_argument("--cut-answers", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds = ("story", "reply", "rewrite", "extract")
    proxy = zoo_lm("proxy")
    prompts = suite_prompts(options.prompts, kinds=kinds, seed=3)
    with served(STEP_S) as (port, slow):
        counted = asyncio.run(count_bytes(port, proxy, prompts))
        print(counted, file=sys.stderr, flush=True)
        speed = speeds(port, proxy, prompts)
        slow.step_s = 0.005
        cuts = asyncio.run(through_cuts(port, proxy, suite_prompts(options.cut_answers, kinds=kinds, seed=4)))
        print(cuts, file=sys.stderr, flush=True)
    proxy.close()
    result = {
        "commit": commit(),
        "hardware": hardware(),
        "load": float(Path("/proc/loadavg").read_text().split()[0]),
        "cores": len(os.sched_getaffinity(0)),
        "bytes": counted,
        "cuts": cuts,
        "speed": speed,
    }
    print(as_markdown(result))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speculation_real.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "speculation_real.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
