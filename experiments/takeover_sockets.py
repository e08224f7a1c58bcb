"""How long does a reader wait where the cloud's process dies, or stops, in the middle of an answer?

Real processes and real sockets on loopback: `consort serve --role cloud`, a gateway with a bundled edge model
before it, and a client that streams `consort/speculate`. At a random piece the cloud is killed (-9) or
stopped (SIGSTOP). Before each kill both processes are new, so no request has asked the edge; a gateway that
meets a stopped cloud lives on. Measured: the longest wait for a piece since, and how much of it the edge took
to its first (the rest is noticing, and trying to reach the cloud again); after a stop also the seconds until
the cloud, going on, has no connection of it left. Two checkouts take turns where `--against` names the other.

    nice -n 2 env OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/takeover_sockets.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import aiohttp
from provenance import commit, hardware

HERE = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
LIMIT_S = 0.5
PROMPT = "Continue the story.\n\nEvery Sunday he wrote a letter to Emma."
GATEWAY = """
[serve]
port = {port}
state = "{state}"
strategy = "speculate"

[[serve.edges]]
model = "zoo:edge-llama"

[serve.proxy]
model = "zoo:proxy"

[serve.cloud]
name = "cloud"
base_url = "http://127.0.0.1:{cloud}/v1"
drafted = true
"""


@dataclass(slots=True)
class Served:
    """A cloud and the gateway before it, of one checkout."""

    code: Path
    folder: Path
    cloud: subprocess.Popen[bytes] | None = None
    gateway: subprocess.Popen[bytes] | None = None
    cloud_port: int = 0
    port: int = 0

    async def start(self) -> None:
        """Both anew, up to where they listen."""
        self.stop()
        self.cloud_port, self.port = free_port(), free_port()
        config = self.folder / "edge.toml"
        told = {"port": self.port, "cloud": self.cloud_port, "state": self.folder / "edge"}
        config.write_text(GATEWAY.format(**told))
        self.cloud = self._process("--role", "cloud", "--port", str(self.cloud_port))
        self.gateway = self._process(str(config))
        await asyncio.gather(listening(self.cloud_port), listening(self.port))

    def stop(self) -> None:
        """End both."""
        for process in (self.cloud, self.gateway):
            if process is not None:
                process.kill()
                process.wait()

    def _process(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "consort", "serve", *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(self.code)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def listening(port: int) -> None:
    async with asyncio.timeout(120):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            except OSError:
                await asyncio.sleep(0.1)


async def taken_over(served: Served, fault: signal.Signals, rng: Random) -> dict | None:
    """One answer in whose middle the cloud dies or stops; None where it had been whole by then."""
    assert served.cloud is not None
    body = {
        "model": "consort/speculate",
        "messages": [{"role": "user", "content": PROMPT}],
        "stream": True,
        "max_tokens": 300,
        "temperature": 1.0,
        "seed": rng.randrange(1 << 30),
        "consort": {"receipt": True},
    }
    at_piece, pieces, waits_s, receipt = rng.randrange(4, 20), 0, list[float](), {}
    last_s: float | None = None
    url = f"http://127.0.0.1:{served.port}/v1/chat/completions"
    async with aiohttp.ClientSession() as http, http.post(url, json=body) as response:
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            receipt = event.get("consort", {}).get("receipt") or event.get("consort") or receipt
            if not any(choice["delta"].get("content") for choice in event["choices"]):
                continue
            pieces += 1
            if last_s is not None:
                waits_s.append(time.monotonic() - last_s)
                last_s = time.monotonic()
            elif pieces == at_piece:
                served.cloud.send_signal(fault)
                last_s = time.monotonic()
    edge_s = [call["first_s"] for call in receipt.get("calls", []) if call["side"] == "edge"]
    if not edge_s or not waits_s:
        return None
    return {"wait_s": max(waits_s), "edge_s": edge_s[-1]}


async def freed_s(served: Served) -> float:
    """Since the cloud goes on: until none of its connections is left."""
    assert served.cloud is not None
    served.cloud.send_signal(signal.SIGCONT)
    begun_s = time.monotonic()
    while time.monotonic() - begun_s < 10 and connections(served.cloud_port):
        await asyncio.sleep(0.02)
    return time.monotonic() - begun_s


def connections(port: int) -> int:
    """Established connections of this port's listener."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01" for line in lines)


async def trial(served: Served, fault: signal.Signals, rng: Random) -> dict:
    while True:
        if fault is signal.SIGKILL or served.cloud is None:
            await served.start()
        found = await taken_over(served, fault, rng)
        if fault is signal.SIGSTOP:
            freed = await freed_s(served)
            found = found and {**found, "freed_s": freed}
        if found is not None:
            return {"load": os.getloadavg()[0], **found}


async def measured(codes: dict[str, Path], count: int, folder: Path) -> list[dict]:
    rows = []
    for fault in (signal.SIGSTOP, signal.SIGKILL):
        arms = {name: Served(code, folder / name) for name, code in codes.items()}
        for served in arms.values():
            served.folder.mkdir(exist_ok=True)
        try:
            for number in range(count):
                turn = list(arms.items())
                for name, served in turn if number % 2 else turn[::-1]:
                    row = {"fault": fault.name, "arm": name, **await trial(served, fault, Random(number))}
                    rows.append(row)
                    print(row, file=sys.stderr, flush=True)
        finally:
            for served in arms.values():
                served.stop()
    return rows


def summary(rows: list[dict]) -> list[dict]:
    found = []
    for fault, arm in dict.fromkeys((row["fault"], row["arm"]) for row in rows):
        of = [row for row in rows if (row["fault"], row["arm"]) == (fault, arm)]
        waits = sorted(row["wait_s"] for row in of)
        freed = [row["freed_s"] for row in of if "freed_s" in row]
        found.append(
            {
                "fault": fault,
                "arm": arm,
                "answers": len(of),
                "median_s": statistics.median(waits),
                "least_s": waits[0],
                "worst_s": waits[-1],
                "within": sum(wait <= LIMIT_S for wait in waits),
                "edge_median_s": statistics.median(row["edge_s"] for row in of),
                "edge_worst_s": max(row["edge_s"] for row in of),
                "freed_worst_s": max(freed) if freed else None,
                "load": statistics.median(row["load"] for row in of),
            }
        )
    return found


def as_markdown(result: dict) -> str:
    lines = [
        "# Takeover over real sockets",
        "",
        f"Commit {result['commit']}; {result['hardware']}.",
        "",
        "Milliseconds a reader waits where the cloud's process is killed (both processes new, no request has "
        "asked the edge) or stopped (a gateway that lives on); of them, those until the edge's first piece "
        "once it was asked. "
        "Freed: after a stopped cloud goes on, until no connection of it is left, seconds (10: it was not).",
        "",
        "| fault | code | answers | median | least | worst | in 500 ms | edge, median | edge, worst | freed "
        "| load |",
        "|---" * 11 + "|",
    ]
    for row in result["summary"]:
        times = [row[key] for key in ("median_s", "least_s", "worst_s", "edge_median_s", "edge_worst_s")]
        median, least, worst, edge, edge_worst = (f"{1000 * each:.0f}" for each in times)
        freed = "–" if row["freed_worst_s"] is None else f"{row['freed_worst_s']:.2f}"
        lines.append(
            f"| {row['fault']} | {row['arm']} | {row['answers']} | {median} | {least} | {worst} "
            f"| {row['within']} | {edge} | {edge_worst} | {freed} | {row['load']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=9, help="of each fault")
    parser.add_argument("--against", type=Path, help="another checkout, which takes turns")
    options = parser.parse_args()
    codes = {"this": HERE} | ({"before": options.against} if options.against else {})
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measured(codes, options.answers, Path(folder)))
    result = {"commit": commit(), "hardware": hardware(), "rows": rows, "summary": summary(rows)}
    print(as_markdown(result))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "takeover_sockets.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "takeover_sockets.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
