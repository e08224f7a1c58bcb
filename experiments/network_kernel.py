"""The link's model against the kernel's own TCP: the same conversations in virtual time, and between two
network namespaces whose packets a process of ours delays, paces and drops (many kernels have no netem).

That process shares no code with the model: it moves IP packets between two TUN devices, so handshakes,
acknowledgements, slow start, time-outs and resending are Linux's. Losses fall elsewhere than in the model,
so means over many connections are compared. Needs root and /dev/net/tun; Linux only.

    env OMP_NUM_THREADS=1 python experiments/network_kernel.py [--repeats 10]
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import fcntl
import json
import multiprocessing
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

from network import Measured, StreamChannel, in_virtual_time
from network_cases import CASES, cloud, device
from provenance import commit, hardware

from consort.bench.metrics import Score
from consort.bench.simulate import Link, precise_run, take_precedence

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results"
DEVICE, CLOUD, PORT = "10.77.0.1", "10.77.0.2", 7700
NEW_NETWORK = 0x40000000  # CLONE_NEWNET
SET_INTERFACE, TUN_WITHOUT_INFO = 0x400454CA, 0x1001
PACKET_BYTES = 65_536
VIRTUAL_RUNS = 200
LINKS = {
    f"{rtt_s * 1000:.0f} ms ± {jitter_s * 1000:.0f}, {rate:.0f} Mbit/s, loss {loss:.0%}": Link(
        rtt_s, jitter_s, rate, rate, loss
    )
    for rtt_s, jitter_s, rate, loss in (
        (0.05, 0.0, 1.0, 0.0),
        (0.05, 0.0, 20.0, 0.0),
        (0.05, 0.01, 20.0, 0.0),
        (0.1, 0.0, 20.0, 0.0),
        (0.05, 0.0, 20.0, 0.01),
        (0.05, 0.0, 1.0, 0.03),
        (0.02, 0.0, 20.0, 0.03),
    )
}


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace: its packets' device and the sockets that were made in it."""

    tun: int
    sockets: tuple[socket.socket, ...]


def in_new_namespace(work: Callable[[], T]) -> T:
    """`work` on a thread with a network of its own; what it opened belongs there and works anywhere."""

    def run() -> T:
        if ctypes.CDLL(None, use_errno=True).unshare(NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "no network namespace: this experiment needs root")
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def place(address: str, peer: str, num_sockets: int) -> Place:
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, SET_INTERFACE, struct.pack("16sH14x", b"tun0", TUN_WITHOUT_INFO))
    for command in (f"address add {address} peer {peer} dev tun0", "link set dev tun0 up mtu 1500"):
        subprocess.run(["ip", *command.split()], check=True)
    made = tuple(socket.socket(proto=socket.IPPROTO_TCP) for _ in range(num_sockets))
    for each in made:
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    return Place(tun, made)


def forward(tuns: tuple[int, int], link: Link, seed: int) -> None:
    """Packets from one device to the other and back, each lane its own, for ever."""
    take_precedence()
    rng = Random(seed)
    rates = [link.up_mbit_s, link.down_mbit_s]
    free_s, last_s = [0.0, 0.0], [0.0, 0.0]
    waiting: list[deque[tuple[float, bytes]]] = [deque(), deque()]
    while True:
        due_s = min((lane[0][0] for lane in waiting if lane), default=None)
        patience = None if due_s is None else max(0.0, due_s - time.perf_counter())
        ready, _, _ = select.select(tuns, (), (), patience)
        now_s = time.perf_counter()
        for lane, tun in enumerate(tuns):
            if tun in ready:
                packet = os.read(tun, PACKET_BYTES)
                free_s[lane] = max(now_s, free_s[lane]) + len(packet) * 8e-6 / rates[lane]
                late_s = rng.uniform(-link.jitter_s, link.jitter_s)
                last_s[lane] = max(last_s[lane], free_s[lane] + link.rtt_s / 2 + late_s)
                if rng.random() >= link.loss:
                    waiting[lane].append((last_s[lane], packet))
            while waiting[lane] and waiting[lane][0][0] <= now_s:
                os.write(tuns[1 - lane], waiting[lane].popleft()[1])


def in_real_time(link: Link, repeats: int) -> list[Measured]:
    devices = in_new_namespace(lambda: place(DEVICE, CLOUD, repeats))
    clouds = in_new_namespace(lambda: place(CLOUD, DEVICE, 1))
    forwarder = multiprocessing.get_context("fork").Process(
        target=forward, args=((devices.tun, clouds.tun), link, 0), daemon=True
    )
    forwarder.start()
    try:
        return precise_run(converse(devices.sockets, clouds.sockets[0]))
    finally:
        forwarder.kill()
        forwarder.join()
        for there in (devices, clouds):
            os.close(there.tun)


async def converse(clients: Sequence[socket.socket], listening: socket.socket) -> list[Measured]:
    listening.bind((CLOUD, PORT))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await cloud(StreamChannel(reader, writer))
        finally:
            writer.close()

    server, found = await asyncio.start_server(serve, sock=listening), []
    for client in clients:
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (CLOUD, PORT))
        reader, writer = await asyncio.open_connection(sock=client)
        found.append(await device(StreamChannel(reader, writer)))
        writer.close()
    server.close()
    return found


def compare(virtual: list[Measured], real: list[Measured]) -> dict[str, dict[str, float]]:
    """Each case's mean seconds in each way, with the standard error of the real one, and their ratio."""
    row = {}
    for case in CASES:
        model, kernel = (Score.of([sum(one[case]) for one in way]) for way in (virtual, real))
        row[case] = {
            "virtual_s": model.mean,
            "kernel_s": kernel.mean,
            "kernel_stderr_s": kernel.stderr,
            "ratio": kernel.mean / model.mean,
        }
    return row


def as_markdown(result: dict) -> str:
    lines = [
        "# Network: the model against the kernel's TCP",
        "",
        f"Commit {result['commit']}; {result['hardware']}; load {result['load']}; Linux {result['kernel']}, "
        f"cubic. {result['repeats']} connections a link; virtual time {VIRTUAL_RUNS} seeds. A cell: mean "
        "seconds of a whole conversation in virtual time / between two network namespaces ± standard error "
        "(ratio).",
        "",
        f"| link | {' | '.join(CASES)} |",
        "|---|" + "---|" * len(CASES),
    ]
    for name, row in result["links"].items():
        cells = [
            f"{cell['virtual_s']:.3f} / {cell['kernel_s']:.3f} ± {cell['kernel_stderr_s']:.3f} "
            f"({cell['ratio']:.2f})"
            for cell in (row[case] for case in CASES)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10, help="connections a link")
    options = parser.parse_args()
    take_precedence()
    found = {}
    for name, link in LINKS.items():
        print(name, file=sys.stderr, flush=True)
        virtual = [in_virtual_time(link, seed) for seed in range(VIRTUAL_RUNS)]
        found[name] = compare(virtual, in_real_time(link, options.repeats))
    result = {
        "commit": commit(),
        "hardware": hardware(),
        "load": float(Path("/proc/loadavg").read_text().split()[0]),
        "kernel": os.uname().release,
        "repeats": options.repeats,
        "links": found,
    }
    print(as_markdown(result))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "network_kernel.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "network_kernel.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
