"""Real time, kept well: nothing early, and any number of files."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import socket

import pytest

from consort.bench.simulate import precise_run, sleep_until


def test_a_precise_loop_takes_more_files_than_select_does() -> None:
    """Files with numbers above 1,023, where `select` gives up."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 1500:
        pytest.skip("no file may have a number above 1,500 here: ulimit -n")

    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        high = fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD_CLOEXEC, 1500)
        ready = asyncio.Event()
        loop.add_reader(high, ready.set)
        theirs.send(b"here")
        await ready.wait()
        loop.remove_reader(high)
        heard = ours.recv(4)
        os.close(high)
        ours.close()
        theirs.close()
        return heard

    assert precise_run(main()) == b"here"


def test_on_a_precise_loop_nothing_wakes_early() -> None:
    async def main() -> bool:
        loop = asyncio.get_running_loop()
        at_s = loop.time() + 0.003
        await sleep_until(at_s)
        return loop.time() >= at_s - 1e-6

    assert precise_run(main())
