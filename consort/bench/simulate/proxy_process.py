"""The shaping proxy in a process of its own, so that neither client nor server disturbs its timers.

`shaped_proxy` starts it and talks to it over its standard input and output, a line of JSON each way. It ends
when its parent does. Needs no special rights; where it may, it takes precedence over other work. Starting it
takes a moment and blocks: do it before the loop that measures runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from consort.bench.simulate.link import Link
from consort.bench.simulate.precise import precise_run, take_precedence
from consort.bench.simulate.proxy import Shaper
from consort.bench.simulate.trace import Trace

_MOST_LINE_BYTES = 1 << 26  # a long trace
_GOODBYE_S = 5.0


@dataclass(frozen=True, slots=True)
class ShapedProxy:
    """A running proxy: connect to `host`:`port` instead of to the server behind it."""

    host: str
    port: int
    process: subprocess.Popen[str]

    def cut(self) -> None:
        """Break every connection now, at both ends: what is on its way is lost. `outage_s` follows."""
        _ask(self.process, "cut")

    def reshape(self, link: Link, *, seed: int = 0) -> None:
        """Another link from now on, its seconds (traces, breaks) begun anew."""
        _ask(self.process, "reshape", link=asdict(link), seed=seed)

    def traffic(self) -> tuple[int, int]:
        """Bytes read so far from clients (up) and from the server (down), as TCP payload."""
        told = _ask(self.process, "traffic")
        return told["up"], told["down"]


@contextmanager
def shaped_proxy(
    link: Link, upstream_port: int, *, upstream_host: str = "127.0.0.1", seed: int = 0
) -> Iterator[ShapedProxy]:
    """A proxy before `upstream_host`:`upstream_port`, for as long as the block runs. The link's seconds count
    from here."""
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = f"from {__name__} import obey; obey()"
    process = subprocess.Popen(
        [sys.executable, "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    with process:  # leaving it closes the pipes, on which the process ends
        try:
            started = _ask(
                process, "start", link=asdict(link), upstream=[upstream_host, upstream_port], seed=seed
            )
            yield ShapedProxy("127.0.0.1", started["port"], process)
        finally:
            assert process.stdin
            with suppress(BrokenPipeError):
                process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GOODBYE_S)
            process.kill()


def obey() -> None:
    """The process: does what it reads, until there is nothing more to read."""
    take_precedence()
    with suppress(KeyboardInterrupt):
        precise_run(_obey())


def _ask(process: subprocess.Popen[str], what: str, **values: Any) -> dict[str, Any]:
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps({"what": what, **values}) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the shaping proxy has ended; what it said is on standard error")
    told: dict[str, Any] = json.loads(line)
    return told


async def _obey() -> None:
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader(limit=_MOST_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    shaper: Shaper | None = None
    while line := await commands.readline():
        asked = json.loads(line)
        told: dict[str, Any] = {}
        if asked["what"] == "start":
            shaper = Shaper(_link(asked["link"]), tuple(asked["upstream"]), seed=asked["seed"])
            await shaper.start()
            told = {"port": shaper.port}
        assert shaper, "start comes first"
        if asked["what"] == "reshape":
            shaper.reshape(_link(asked["link"]), seed=asked["seed"])
        elif asked["what"] == "cut":
            shaper.cut()
        elif asked["what"] == "traffic":
            told = {"up": shaper.read_bytes["up"], "down": shaper.read_bytes["down"]}
        print(json.dumps(told), flush=True)
    if shaper:
        await shaper.close()


def _link(values: dict[str, Any]) -> Link:
    for key in ("up_mbit_s", "down_mbit_s"):
        if isinstance(rate := values[key], dict):
            values[key] = Trace(tuple(rate["ends_s"]), tuple(rate["mbit_s"]), rate["name"])
    return Link(**{**values, "breaks_s": tuple(values["breaks_s"])})
