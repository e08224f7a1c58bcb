"""`kill -9` at ten random moments of a run, a full disk, a read-only directory: is anything lost or twice?

A small untrained consort (three devices of three architectures and tokenizer families, two rounds) is
co-tuned by `consort tune` without interruption. Then the same run in another directory is killed a random
while after its work began and continued with `--resume`, again and again, in as many directories as ten kills
need; and on file systems that fill up or refuse to be written. Every run must end in the bytes of the first.
Mounting needs root, and Linux: without it those cases are left out, and the result says so. Power cuts are
not tried.

    python experiments/crash.py [--seed 0] [--kills 10]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from crash_consort import DEVICES, ROUNDS, TRAIN_ROWS, write_consort
from provenance import commit, hardware

RESULTS = Path(__file__).parent / "results"
FULL_AT = (0.15, 0.5, 0.8, 0.95)  # the disk's size as a share of the finished run's
DEADLINE_S = 900  # of one `consort tune`


@dataclass(frozen=True)
class Attempt:
    """One process of `consort tune`: how it ended, and the steps that all journals held then."""

    exit_code: int  # -9: killed
    seconds: float
    begun_s: float  # when its work began, after the imports; -1: never
    errors: int  # lines of stderr that begin with "error:"
    tracebacks: int
    finished_steps: int
    told: str  # the error's own words


def tune(file: Path, run_dir: Path, *, resume: bool, kill_after_s: float | None = None) -> Attempt:
    """`consort tune`, killed so many seconds after its work began."""
    command = [sys.executable, "-m", "consort", "tune", str(file), "--run-dir", str(run_dir), "--json"]
    environment = os.environ | {"CONSORT_CACHE": str(file.parent / "cache"), "OMP_NUM_THREADS": "1"}
    started, begun_s = time.monotonic(), -1.0
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(command + ["--resume"] * resume, stdout=out, stderr=told, env=environment)
        while process.poll() is None and (elapsed_s := time.monotonic() - started) < DEADLINE_S:
            if begun_s < 0 and os.fstat(told.fileno()).st_size:  # its first line of progress
                begun_s = elapsed_s
            if kill_after_s is not None and begun_s >= 0 and elapsed_s >= begun_s + kill_after_s:
                break
            time.sleep(0.005)
        process.kill()  # SIGKILL; nothing happens to a process that has ended
        code, seconds = process.wait(), time.monotonic() - started
        told.seek(0)
        stderr = told.read()
    lines = stderr.splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith("error:")]
    words = " ".join(" ".join(lines[errors[0] :]).split()) if errors else ""
    return Attempt(
        code, round(seconds, 2), round(begun_s, 2), len(errors), stderr.count("Traceback"),
        len(journal_lines(run_dir)), words.replace(str(run_dir), "RUN_DIR"),
    )  # fmt: skip


def journal_lines(run_dir: Path) -> list[dict]:
    """The finished steps of the run's and the devices' journals, by folder."""
    steps = []
    for file in sorted(run_dir.rglob("journal.jsonl")):
        whole_lines = file.read_bytes().split(b"\n")[1:-1]  # without the header and a torn last line
        steps += [{"journal": str(file.relative_to(run_dir)), **json.loads(line)} for line in whole_lines]
    return steps


def compared(run_dir: Path) -> list[Path]:
    """Adapters and proxy, the results of all steps, the journals and the metrics."""
    kinds = ("*.safetensors", "*.bin", "journal.jsonl", "metrics.jsonl")
    found = {kind: sorted(run_dir.rglob(kind)) for kind in kinds}
    assert all(found.values()), found
    return [file for files in found.values() for file in files]


def differences(first: Path, second: Path) -> list[str]:
    """What the second run has other than the first, bit by bit; nothing: the runs are the same."""
    found = []
    names = {str(file.relative_to(run)) for run in (first, second) for file in compared(run)}
    for name in sorted(names):
        if not all((run / name).exists() for run in (first, second)):
            found.append(f"{name}: only in one")
        elif (first / name).read_bytes() != (second / name).read_bytes():
            found.append(f"{name}: other bytes")
    results = [json.loads((run / "result.json").read_text()) for run in (first, second)]
    for result in results:
        for unlike in ("seconds", "run_dir"):
            del result[unlike]
    return found + (["result.json: other numbers"] if results[0] != results[1] else [])


def miscounted(run_dir: Path) -> list[str]:
    """Updates and logged training steps that are there twice or not at all, or stand for a wrong count."""
    steps = journal_lines(run_dir)
    updates = [step for step in steps if "num_examples" in step["meta"] and step["journal"].startswith("j")]
    found = [
        f"{step['key']}: {step['meta']['num_examples']} examples"
        for step in updates
        if step["meta"]["num_examples"] != TRAIN_ROWS
    ]
    keys = Counter((step["journal"], step["key"]) for step in steps)
    found += [f"{key}: {count} times" for key, count in keys.items() if count != 1]
    expected = {f"round-{number}/{name}" for number in range(ROUNDS) for name in DEVICES}
    found += [f"{key}: not counted" for key in expected - {step["key"] for step in updates}]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    logged = Counter((row["phase"], row["round"], row["party"], row["step"]) for row in rows)
    return found + [f"logged step {row}: {count} times" for row, count in logged.items() if count != 1]


def killed(file: Path, folder: Path, whole: Attempt, *, kills: int, seed: int) -> list[list[Attempt]]:
    """Runs in folders 0, 1, ... until so many attempts were killed, each within half of the work."""
    rng, chains, left = random.Random(seed), [], kills
    while left:
        chain: list[Attempt] = []
        while not chain or chain[-1].exit_code == -9:
            moment_s = rng.uniform(0, 0.5 * (whole.seconds - whole.begun_s)) if left else None
            run_dir = folder / str(len(chains))
            chain.append(tune(file, run_dir, resume=bool(chain), kill_after_s=moment_s))
            left -= chain[-1].exit_code == -9
            print(len(chains), chain[-1], file=sys.stderr)
        chains.append(chain)
    return chains


@contextmanager
def small_disk(size_bytes: int) -> Iterator[Path]:
    """A file system in memory of this size, unmounted at the end."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "consort-crash", folder], check=True
        )
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def remount(folder: Path, options: str) -> None:
    """Another size, or read-only."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def full_disk(file: Path, whole_dir: Path, share: float) -> dict:
    """The run on a disk of `share` of its size, then continued on one that is large enough."""
    size_bytes = 4096 * sum(1 + path.stat().st_size // 4096 for path in whole_dir.rglob("*"))
    with small_disk(int(share * size_bytes)) as disk:
        refused = tune(file, disk / "run", resume=False)
        remount(disk, f"size={4 * size_bytes}")
        return _mended(f"disk of {share:.0%}", file, disk / "run", refused, whole_dir)


def read_only(file: Path, whole_dir: Path, begin_s: float | None) -> dict:
    """A directory that cannot be written: before a new run, or after one that was killed at `begin_s`."""
    with small_disk(1 << 30) as disk:
        if begin_s is not None:
            tune(file, disk / "run", resume=False, kill_after_s=begin_s)
        remount(disk, "ro")
        refused = tune(file, disk / "run", resume=begin_s is not None)
        remount(disk, "rw")
        case = "read-only, new run" if begin_s is None else "read-only, half-way"
        return _mended(case, file, disk / "run", refused, whole_dir)


def _mended(case: str, file: Path, run_dir: Path, refused: Attempt, whole_dir: Path) -> dict:
    """How the run was refused, and whether it then went on and ended as the uninterrupted one."""
    resumed = tune(file, run_dir, resume=True)
    print(case, refused, resumed, file=sys.stderr)
    found = ["did not finish"] if resumed.exit_code else differences(whole_dir, run_dir) + miscounted(run_dir)
    return {"case": case, "refused": asdict(refused), "differences": found}


def measure(folder: Path, *, kills: int, seed: int) -> dict:
    """All cases; the first run is what the others must equal."""
    file, whole_dir = write_consort(folder), folder / "whole"
    whole = tune(file, whole_dir, resume=False)
    assert whole.exit_code == 0, whole
    print(whole, file=sys.stderr)
    chains = killed(file, folder / "killed", whole, kills=kills, seed=seed)
    killed_dirs = [folder / "killed" / str(number) for number in range(len(chains))]
    result = {
        "commit": commit(),
        "hardware": hardware(),
        "seed": seed,
        "whole": asdict(whole),
        "chains": [[asdict(attempt) for attempt in chain] for chain in chains],
        "differences": [found for run_dir in killed_dirs for found in differences(whole_dir, run_dir)],
        "miscounted": [found for run_dir in (whole_dir, *killed_dirs) for found in miscounted(run_dir)],
        "bytes_compared": sum(file.stat().st_size for file in compared(whole_dir)),
        "adapter_bytes": sum(file.stat().st_size for file in whole_dir.glob("adapters/**/*.safetensors")),
        "disks": [],
    }
    if os.geteuid() == 0:  # mounting needs root
        half_s = 0.5 * (whole.seconds - whole.begun_s)
        result["disks"] = [full_disk(file, whole_dir, share) for share in FULL_AT]
        result["disks"] += [read_only(file, whole_dir, begin_s) for begin_s in (None, half_s)]
    return result


def as_markdown(result: dict) -> str:
    """The result as a page."""
    whole, chains = result["whole"], result["chains"]
    kills = [attempt for chain in chains for attempt in chain if attempt["exit_code"] == -9]
    lines = [
        "# Runs that are interrupted",
        "",
        f"`experiments/crash.py`; commit {result['commit']}; {result['hardware']}; seed {result['seed']}.",
        f"{len(DEVICES)} devices, {ROUNDS} rounds; uninterrupted {whole['seconds']:.0f} s, of which "
        f"{whole['begun_s']:.0f} s imports, and {whole['finished_steps']} finished steps.",
        "",
        f"## `kill -9`, {len(kills)} times",
        "",
        f"Adapters ({result['adapter_bytes']:,} bytes of safetensors), journals, metrics and scores, "
        f"{result['bytes_compared']:,} bytes in all: {_said(result['differences'], 'bit for bit the same')}.",
        f"Examples, updates and logged steps: {_said(result['miscounted'], 'each counted once')}.",
        "",
        "| run | ended by | seconds after its work began | steps finished so far |",
        "|---|---|---|---|",
    ]
    for number, attempt in ((number, each) for number, chain in enumerate(chains, start=1) for each in chain):
        end = "SIGKILL" if attempt["exit_code"] == -9 else f"itself, exit code {attempt['exit_code']}"
        after_s = attempt["seconds"] - attempt["begun_s"]
        lines.append(f"| {number} | {end} | {after_s:.2f} | {attempt['finished_steps']} |")
    lines += ["", "## A disk that is full, a directory that is read-only", ""]
    if not result["disks"]:
        return "\n".join([*lines, "Left out: mounting needs root."]) + "\n"
    lines += [
        "Size as a share of the finished run's. Then more room, `--resume`, and the end compared as above.",
        "",
        "| case | exit code | errors | tracebacks | steps kept | after --resume | the error |",
        "|---" * 7 + "|",
    ]
    for disk in result["disks"]:
        cells = [
            str(disk["refused"][name]) for name in ("exit_code", "errors", "tracebacks", "finished_steps")
        ]
        cells += [_said(disk["differences"], "the same"), disk["refused"]["told"]]
        lines.append(f"| {disk['case']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _said(found: Sequence[str], nothing: str) -> str:
    more = f"; and {len(found) - 3} more" * (len(found) > 3)
    return f"**{'; '.join(found[:3])}{more}**" if found else nothing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), kills=options.kills, seed=options.seed)
    print(as_markdown(result))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "crash.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "crash.md").write_text(as_markdown(result))


if __name__ == "__main__":
    main()
