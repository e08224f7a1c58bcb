"""Servers as processes of their own, and what asks them: shared by the gateway's experiments.

The client speaks HTTP by hand, so that its cost stays small beside a server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway_arms import TEXT

HERE = Path(__file__).parent
ROOT = HERE.parent
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, CLIENT_CORE = str(CORES[-1]), str(CORES[0])
QUESTION = "When does the clinic open on Sundays, and whom do I call?"


@dataclass
class Arm:
    """A listening server; `samples` are what was measured of it."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    headers: str = ""
    model: str = "far"
    samples: dict[str, list[float]] = field(default_factory=dict)

    def note(self, what: str, value: float) -> None:
        self.samples.setdefault(what, []).append(value)

    def cpu_s(self) -> float:
        """Processor time of the arm so far."""
        self._must_live()
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        self._must_live()
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def _must_live(self) -> None:
        if (code := self.process.poll()) is not None:
            raise SystemExit(f"{self.name} ended with {code}: {_last_words(self.process)}")


@contextlib.contextmanager
def ended(arms: Sequence[Arm]) -> Iterator[None]:
    """Every arm ends with the block."""
    try:
        yield
    finally:
        for arm in arms:
            arm.process.terminate()
        for arm in arms:
            arm.process.wait(20)


def start(name: str, port: int, command: list[str], *, core: str = SERVER_CORE, wait_s: float = 60) -> Arm:
    """One pinned process, up to where it listens."""
    log = open(os.devnull, "wb") if name == "litellm" else None  # noqa: SIM115 - it writes more than a pipe holds
    process = subprocess.Popen(
        ["taskset", "-c", core, *command],
        stdout=subprocess.DEVNULL,
        stderr=log or subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return Arm(name, port, process)
        if process.poll() is not None:
            raise SystemExit(f"{name} ended: {_last_words(process)}")
        time.sleep(0.1)
    process.kill()
    raise SystemExit(f"{name} does not listen")


def _last_words(process: subprocess.Popen[bytes]) -> str:
    return process.stderr.read().decode()[-2000:] if process.stderr else ""


def start_upstream() -> Arm:
    """The endpoint that answers at once, beside the client."""
    port = free_port()
    script = str(HERE / "gateway_arms.py")
    return start("upstream", port, [sys.executable, script, "upstream", str(port)], core=CLIENT_CORE)


def start_ours(folder: Path, upstream: Arm, *, core: str = SERVER_CORE, **serve: object) -> Arm:
    """`consort serve` with everything on; the cascade asks the edge, scores its answer and gives it."""
    from consort.gateway.keys import Key, add_key

    folder.mkdir(exist_ok=True)
    keys, port, url = folder / "keys.json", free_port(), f"http://127.0.0.1:{upstream.port}/v1"
    secret = folder / "secret"  # of this experiment alone, so that a restart knows it
    if not secret.exists():
        secret.write_text(add_key(keys, Key("bench", budget=1e9, per_minute=1e9)))
    lines = ["[serve]", f"port = {port}", f"state = {json.dumps(str(folder))}"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in serve.items()]
    for name in ("near", "slow"):
        lines += ["[[serve.edges]]", f'name = "{name}"', f'model = "{name}"', f'base_url = "{url}"']
    lines += ["[serve.cloud]", 'name = "far"', 'model = "far"', f'base_url = "{url}"']
    lines += ["price_in = 0.2", "price_out = 0.8"]
    config = folder / "consort.toml"
    config.write_text("\n".join(lines) + "\n")
    arm = start("ours", port, [sys.executable, "-m", "consort", "serve", str(config)], core=core)
    arm.model, arm.headers = "consort", f"Authorization: Bearer {secret.read_text()}\r\n"
    return arm


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# ---- one request


def request_bytes(arm: Arm, *, stream: bool, model: str = "", text: str = QUESTION) -> bytes:
    """A chat, with a receipt where ours is asked."""
    receipt = {"consort": {"receipt": True}} if arm.name == "ours" else {}
    body = {"model": model or arm.model, "messages": [{"role": "user", "content": text}], "stream": stream}
    return post_bytes(arm, json.dumps(body | receipt).encode())


def post_bytes(arm: Arm, body: bytes) -> bytes:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{arm.headers}\r\n"
    )
    return head.encode() + body


async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: bytes) -> tuple[int, bytes]:
    """Ask on an open connection; returns the status and the body, its chunks joined."""
    writer.write(asked)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    if b"content-length:" in head:
        return status, await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
    parts = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readuntil(b"\r\n")
    return status, b"".join(parts)


def check(answered: tuple[int, bytes], *, stream: bool) -> None:
    """A whole answer: no chunk lost or reordered."""
    status, body = answered
    assert status == 200, body[:300]
    if not stream:
        assert json.loads(body)["choices"][0]["message"]["content"] == TEXT, body[:300]
        return
    events = [line[6:] for line in body.split(b"\n\n") if line.startswith(b"data: {")]
    said = [choice["delta"].get("content") or "" for e in events for choice in json.loads(e)["choices"]]
    assert "".join(said) == TEXT, body[:300]
    assert body.rstrip().endswith(b"data: [DONE]"), body[-100:]
