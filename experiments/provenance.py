"""Where a measured number comes from: commit and machine, and the memory that a call took. Linux only."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path


def commit() -> str:
    """The checkout that these scripts run from; "-dirty" where it has changes, "none" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "none"


def hardware() -> str:
    """Processor, cores and the version of torch."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {os.cpu_count()} cores, 1 thread used, torch {importlib.metadata.version('torch')}"


def peak_bytes(work: Callable[[], object]) -> int:
    """Peak resident size during `work`, less the size before. In a fresh process: memory that was freed but
    not given back hides as much of the peak."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts at the present size
    before = _resident_bytes("VmRSS")
    work()
    return _resident_bytes("VmHWM") - before


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
