"""A file written whole or not at all: until its last byte is down, and after a failure, the old one stays."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path, *, durable: bool = False, contended: bool = False) -> Iterator[BinaryIO]:
    """An empty file that takes the place of `path` when the block ends well.

    `durable`: it is on the disk, under its name, before the block is left. `contended`: other processes may
    write the same path, so the unfinished file has a name that only this one knows; else it is `<name>.tmp`,
    and the next attempt replaces what a crash left of it.
    """
    unfinished = path.with_name(f"{path.name}.tmp")
    if contended:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp")
        os.close(handle)
        unfinished = Path(name)
    try:
        with unfinished.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    if durable:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
