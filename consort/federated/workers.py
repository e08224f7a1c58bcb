"""Steps of a run, several at once in processes of their own.

A step is a function of its arguments alone, so where it is computed changes no number. Threads would not do:
torch's random state and its tiny operations belong to one process. Does not record anything: that is the
journal's part.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

from consort.errors import RunError
from consort.federated.journal import Compute, Entry, Step, one_by_one


@contextlib.contextmanager
def side_by_side(count: int) -> Iterator[Compute]:
    """`count` processes that take steps as they become free; with one, `one_by_one`.

    Steps must pickle. RunError if a process dies, for example out of memory; leaving early stops them all.
    """
    if count == 1:
        yield one_by_one
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_end_with_parent)

    def compute(steps: Mapping[str, Step]) -> Iterator[tuple[str, Entry]]:
        asked = {pool.submit(step): key for key, step in steps.items()}
        try:
            for done in as_completed(asked):
                yield asked[done], done.result()
        except BrokenProcessPool as error:
            raise RunError(
                "a process that computed a step was killed, perhaps out of memory",
                where=f"runtime.workers = {count}",
                hint="finished steps are kept: continue with --resume and fewer runtime.workers",
            ) from error

    try:
        yield compute
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A process that outlived the run would go on computing for nobody, and an interrupt is the run's to
    report."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a child"

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
