"""Do the two networks agree? The same conversations over the same links, once in virtual time and once as
real traffic through the shaping proxy: ratios of what each took.

Links: round trips of 20, 50 and 100 ms, jitter 0 and 10 ms, 1 and 20 Mbit/s, loss 0 and 1 %; and real traces
at 50 ms. Each repetition has another seed, the same in both. Real time runs in this process (device and
cloud, on loopback) and the proxy's; where they may, both come before other work. Traces on which all four
conversations would take more than a minute are begun elsewhere: puffer's slowest hours are hardly a network.

    env OMP_NUM_THREADS=1 python experiments/network.py [--repeats 3] [--traces 12]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

from network_cases import CASES, cloud, device
from provenance import commit, hardware

from consort.bench.simulate import (
    Link,
    Wire,
    precise_run,
    read_trace,
    shaped_proxy,
    take_precedence,
    trace_link,
    virtual_run,
)
from consort.bench.simulate.proxy_process import ShapedProxy

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("CONSORT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
PREFIX_BYTES = 4  # the length before each message
LONGEST_S = 60.0
Measured = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class StreamChannel:
    """Messages with a length before each, over a real connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, message: bytes) -> None:
        self.writer.write(len(message).to_bytes(PREFIX_BYTES, "big") + message)

    async def receive(self) -> bytes:
        size = int.from_bytes(await self.reader.readexactly(PREFIX_BYTES), "big")
        return await self.reader.readexactly(size)


def constant_links() -> dict[str, Link]:
    grid = itertools.product((0.02, 0.05, 0.1), (0.0, 0.01), (1.0, 20.0), (0.0, 0.01))
    return {
        f"{rtt_s * 1000:.0f} ms ± {jitter_s * 1000:.0f}, {rate:.0f} Mbit/s, loss {loss:.0%}": Link(
            rtt_s, jitter_s, rate, rate, loss
        )
        for rtt_s, jitter_s, rate, loss in grid
    }


def trace_links(count: int, seed: int) -> dict[str, Link]:
    """Traces drawn evenly from the three collections, each begun at a random moment; up a quarter of down."""
    folder, rng = DATA / "traces" / "bandwidth", Random(seed)
    if not folder.is_dir():
        raise SystemExit(f"no traces at {folder}: set CONSORT_DATA, or --traces 0")
    found: dict[str, Link] = {}
    kinds = [sorted(folder.glob(f"{kind}_*")) for kind in ("3g", "puffer", "5g")]
    for kind in itertools.islice(itertools.cycle(kinds), count):
        file = rng.choice(kind)
        while True:
            start_s = rng.uniform(0, read_trace(file).length_s)
            link = trace_link(file, rtt_s=0.05, start_s=start_s, up_share=0.25)
            if sum(map(sum, in_virtual_time(link, 0).values())) < LONGEST_S:
                break
        found[f"{file.name} from second {start_s:.0f}"] = link
    return found


def in_virtual_time(link: Link, seed: int) -> Measured:
    async def main() -> Measured:
        wire = Wire(link, seed=seed, frame_bytes=PREFIX_BYTES)

        async def serve() -> None:
            await cloud(await wire.accept())

        serving = asyncio.create_task(serve())
        measured = await device(await wire.dial())
        await serving
        return measured

    return virtual_run(main())


async def in_real_time(links: dict[str, Link], repeats: int) -> dict[str, list[Measured]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await cloud(StreamChannel(reader, writer))
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    found: dict[str, list[Measured]] = {name: [] for name in links}
    with shaped_proxy(Link(), server.sockets[0].getsockname()[1]) as proxy:
        for repeat in range(repeats):  # in turn, so that the machine's load falls on all links alike
            for name, link in links.items():
                print(f"{repeat + 1} of {repeats}: {name}", file=sys.stderr, flush=True)
                found[name].append(await once(proxy, link, repeat))
    server.close()
    return found


async def once(proxy: ShapedProxy, link: Link, seed: int) -> Measured:
    proxy.reshape(link, seed=seed)
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        return await device(StreamChannel(reader, writer))
    finally:
        writer.close()


def compare(virtual: list[Measured], real: list[Measured]) -> dict[str, dict[str, float]]:
    """Each case: the median of everything measured in each way, their ratio, and the repetitions' worst."""
    row = {}
    for case in CASES:
        medians = [statistics.median(value for one in way for value in one[case]) for way in (virtual, real)]
        ratios = [sum(r[case]) / sum(v[case]) for v, r in zip(virtual, real, strict=True)]
        row[case] = {
            "virtual_s": medians[0],
            "real_s": medians[1],
            "ratio": medians[1] / medians[0],
            "worst_repeat": max(ratios, key=lambda ratio: abs(ratio - 1)),
        }
    return row


def as_markdown(result: dict) -> str:
    rows = result["links"]
    ratios = {case: [row[case]["ratio"] for row in rows.values()] for case in CASES}
    every = [ratio for case in ratios.values() for ratio in case]
    within = sum(0.9 <= ratio <= 1.1 for ratio in every)
    lines = [
        "# Network: virtual time against real traffic through the proxy",
        "",
        f"Commit {result['commit']}; {result['hardware']}; load {result['load']}; before other work: "
        f"{'yes' if result['precedence'] else 'no'}. {result['repeats']} repetitions a link, seeds 0 and on, "
        "the same in both. A cell: median seconds in virtual time / in real time (ratio; the repetition "
        "whose total differs most).",
        "",
        f"Asked: within 10 %. Within: {within} of {len(every)}. Median ratio and range by case: "
        + "; ".join(
            f"{case} {statistics.median(of):.3f} ({min(of):.3f} to {max(of):.3f})"
            for case, of in ratios.items()
        )
        + ".",
        "",
        f"| link | {' | '.join(CASES)} |",
        "|---|" + "---|" * len(CASES),
    ]
    for name, row in rows.items():
        cells = [
            f"{cell['virtual_s']:.3f} / {cell['real_s']:.3f} "
            f"({cell['ratio']:.3f}; {cell['worst_repeat']:.2f})"
            for cell in (row[case] for case in CASES)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--traces", type=int, default=12, help="0 leaves them out")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of traces")
    options = parser.parse_args()
    links = constant_links() | (trace_links(options.traces, options.seed) if options.traces else {})
    virtual = {
        name: [in_virtual_time(link, seed) for seed in range(options.repeats)] for name, link in links.items()
    }
    total_s = sum(sum(map(sum, one.values())) for way in virtual.values() for one in way)
    print(f"{total_s / 60:.0f} minutes of real time to come", file=sys.stderr)
    precedence = take_precedence()
    real = precise_run(in_real_time(links, options.repeats))
    result = {
        "commit": commit(),
        "hardware": hardware(),
        "load": float(Path("/proc/loadavg").read_text().split()[0]),
        "precedence": precedence,
        "repeats": options.repeats,
        "seed": options.seed,
        "links": {name: compare(virtual[name], real[name]) for name in links},
    }
    print(as_markdown(result))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "network.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "network.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
