"""`consort doctor`: what is installed, what a run would need, and for each lack the command that repairs it.

Each check is a function that returns findings; none changes anything, none needs the network, none raises.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from consort.errors import ModelError
from consort.models import zoo
from consort.models.gguf.library import INSTALL

DISTRIBUTION = "consort-lm"
MODULES = {"llama-cpp-python": "llama_cpp"}  # where a module has another name
EXTRAS = ("local", "serve", "deciding", "federated", "gguf", "plots")
GIGA = 1e9
LEAST_DISK_BYTES = 1e9
REINSTALL_TORCH = "pip install --force-reinstall torch==2.13.0"
ASK_TORCH = """
import json, torch
rows = [("cpu", "", 0)]
for index in range(torch.cuda.device_count()):
    card = torch.cuda.get_device_properties(index)
    rows.append((f"cuda:{index}", card.name, card.total_memory))
if torch.backends.mps.is_available():
    rows.append(("mps", "", 0))
print(json.dumps(rows))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report; `repair` is the command or change that mends it."""

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    repair: str = ""


def examine_machine(run_dir: Path) -> list[Finding]:
    """What this machine offers, whatever the configuration."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        check_python,
        check_extras,
        check_torch,
        check_threads,
        check_cache,
        check_zoo,
        check_llama_cpp,
    )
    return [finding for check in checks for finding in check()] + list(check_disk(run_dir))


def check_python() -> Iterator[Finding]:
    """The interpreter's version."""
    enough = sys.version_info >= (3, 11)
    repair = "" if enough else "install Python 3.11 or newer"
    yield Finding("Python", "ok" if enough else "fail", platform.python_version(), repair)


def check_extras() -> Iterator[Finding]:
    """Which optional parts are installed; only `local` is needed to tune."""
    installed = _version(DISTRIBUTION)
    repair = "" if installed else "pip install -c constraints.txt -e '.[local,serve,deciding,plots]'"
    yield Finding(DISTRIBUTION, "ok" if installed else "warn", installed or "runs from a checkout", repair)
    for extra in EXTRAS if installed else ():
        wanted = _requirements(extra)
        versions = {name: _version(name) for name in wanted}
        missing = [name for name, version in versions.items() if not version]
        detail = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        if missing:
            lacks = f"not installed: {', '.join(missing)}" + (f" (found {detail})" if detail else "")
            repair = INSTALL if extra == "gguf" else f"pip install '{DISTRIBUTION}[{extra}]'"
            yield Finding(f"extra {extra}", "fail" if extra == "local" else "warn", lacks, repair)
        else:
            yield Finding(f"extra {extra}", "ok", detail)


def check_torch() -> Iterator[Finding]:
    """Whether torch starts, and the devices it can compute on."""
    if not _version("torch"):
        return  # check_extras has said so
    devices = torch_devices()
    if devices:
        yield Finding("torch devices", "ok", ", ".join(str(device) for device in devices))
    else:
        yield Finding("torch devices", "fail", "torch is installed but does not start", REINSTALL_TORCH)


def check_threads() -> Iterator[Finding]:
    """Whether torch's threads survive another process that computes (docs/footguns.md)."""
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    cores = os.cpu_count() or 1
    detail = f"{cores} cores, OMP_WAIT_POLICY={policy or 'unset'}"
    if policy.upper() == "PASSIVE" or os.environ.get("OMP_NUM_THREADS") == "1":
        yield Finding("threads", "ok", detail)
    else:
        yield Finding("threads", "warn", detail, "export OMP_WAIT_POLICY=PASSIVE")


def check_cache() -> Iterator[Finding]:
    """Whether vocabulary maps can be kept between runs."""
    folder = Path(os.environ.get("CONSORT_CACHE") or Path.home() / ".cache" / "consort")
    if _writable(folder):
        yield Finding("cache", "ok", str(folder))
    else:
        yield Finding(
            "cache", "warn", f"{folder} cannot be written", "export CONSORT_CACHE=DIR (a folder of yours)"
        )


def check_zoo() -> Iterator[Finding]:
    """Whether the demo's models are all there."""
    missing = []
    for name in zoo.NAMES:
        try:
            zoo.zoo_dir(name)
        except ModelError:
            missing.append(name)
    if missing:
        repair = f"pip install --force-reinstall --no-deps {DISTRIBUTION}"
        yield Finding("bundled models", "fail", f"missing: {', '.join(missing)}", repair)
    else:
        yield Finding("bundled models", "ok", ", ".join(zoo.NAMES))


def check_disk(run_dir: Path) -> Iterator[Finding]:
    """Whether the run directory can be written and has room."""
    existing = next(folder for folder in (run_dir.absolute(), *run_dir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free / GIGA:.1f} GB free at {existing}"
    if not _writable(existing):
        yield Finding("disk", "fail", f"{existing} cannot be written", "consort tune FILE --run-dir DIR")
    elif free < LEAST_DISK_BYTES:
        yield Finding("disk", "warn", detail, "free some space, or consort tune FILE --run-dir DIR")
    else:
        yield Finding("disk", "ok", detail)


def check_llama_cpp() -> Iterator[Finding]:
    """Whether an exported GGUF can be run here."""
    program = shutil.which("llama-cli") or shutil.which("llama-server")
    if program or importlib.util.find_spec("llama_cpp"):
        yield Finding("llama.cpp", "ok", program or f"llama-cpp-python {_version('llama-cpp-python')}")
    else:
        yield Finding("llama.cpp", "warn", "not installed; only needed to run an exported GGUF", INSTALL)


def extra_of(module: str) -> str:
    """The extra that brings a top-level module; empty where none does."""
    for extra in EXTRAS:
        if module in (MODULES.get(name, name.replace("-", "_")) for name in _requirements(extra)):
            return extra
    return ""


def _requirements(extra: str) -> list[str]:
    """Distributions an extra asks for, as this installation declares them."""
    try:
        declared = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return []
    marked = (re.match(r"([\w.-]+)[^;]*;.*extra == ['\"]([\w-]+)['\"]", line) for line in declared)
    return [match[1] for match in marked if match and match[2] == extra]


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _writable(folder: Path) -> bool:
    """Whether a file can be made there; the folder itself is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class TorchDevice:
    """Something torch can compute on; `memory_bytes` is 0 for the processor."""

    name: str
    title: str
    memory_bytes: int

    def __str__(self) -> str:
        size = f" ({self.title}, {self.memory_bytes / GIGA:.0f} GB)" if self.memory_bytes else ""
        return self.name + size


@lru_cache(maxsize=1)
def torch_devices() -> tuple[TorchDevice, ...]:
    """Asked of another process, since a torch that crashes would end this one; empty if it does."""
    try:
        answer = subprocess.run(
            [sys.executable, "-c", ASK_TORCH], capture_output=True, timeout=120, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return ()
    return tuple(TorchDevice(*row) for row in json.loads(answer.stdout))
