"""Each example runs from a shell, without network, and what it prints holds."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from consort.bench.suite import public_rows
from consort.config import RuntimeConfig
from consort.models.local import load_model
from consort.models.zoo import zoo_dir
from consort.training.data import read_samples
from consort.training.likelihood import answer_likelihoods

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def printed(name: str, *arguments: str) -> str:
    """What an example writes to stdout; nothing may go wrong, and nobody may ask the Hub."""
    run = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_every_example_is_run_here():
    here = Path(__file__).read_text(encoding="utf-8")
    assert [file.name for file in EXAMPLES.glob("*.py") if f'printed("{file.name}"' not in here] == []


@pytest.mark.slow
def test_distributions_cross_at_every_shared_cut_and_the_actual_token_loses_nothing():
    text = printed("align_tokenizers.py")
    tokens = [line.split("  ", 1)[1].split("|") for line in text.splitlines()[:2]]
    assert "".join(tokens[0]) == "".join(tokens[1])
    cuts = [{0, *itertools.accumulate(map(len, side))} for side in tokens]  # an ASCII text
    rows = re.findall(r"^(=|in) .* (\d\.\d+) -> (\d\.\d+)$", text, re.MULTILINE)
    assert sum(kind == "=" for kind, _, _ in rows) == len(cuts[0] & cuts[1])
    assert f"{len(cuts[1])} positions: {len(cuts[0] & cuts[1])} shared cuts" in text
    for (
        _,
        before,
        after,
    ) in rows:  # masses that meet are added; conditioning only makes the actual token likelier
        assert float(after) >= float(before) - 0.001


@pytest.mark.slow
def test_knowledge_survives_its_packet_and_a_damaged_one_is_refused():
    text = printed("pack_knowledge.py")
    dense_bytes, packet_bytes = (
        int(re.search(pattern, text)[1]) for pattern in (r"(\d+) bytes in float32", r"packet: (\d+) bytes")
    )
    assert packet_bytes < dense_bytes / 20
    kept, error, step = (
        float(re.search(pattern, text)[1])
        for pattern in (r"probability kept: (\S+)", r"largest error: (\S+)", r"of steps of (\S+)")
    )
    assert kept > 0.5
    assert error <= step  # half a step from rounding, at most as much again from sharing it out
    assert re.search(r"^one bit flipped: refused, .*damaged", text, re.MULTILINE)
    assert re.search(r"^other tokenizer: refused, made with tokenizer", text, re.MULTILINE)


@pytest.mark.slow
def test_distillation_helps_on_unseen_rows_and_brings_the_student_closer_to_its_teacher():
    text = printed("distil.py")
    measured = re.findall(r"^(\w+) +(\S+) -> (\S+) bits per byte$", text, re.MULTILINE)
    assert [name for name, _, _ in measured] == ["teacher", "student"]
    assert all(float(after) < float(before) for _, before, after in measured)
    steps = re.findall(r"^step +\d+  answers (\S+)  teacher (\S+) nats$", text, re.MULTILINE)
    for first, last in zip(steps[0], steps[-1], strict=True):
        assert float(last) < float(first)


@pytest.mark.slow
def test_a_run_on_own_rows_leaves_models_that_learned_them_and_says_what_was_sent(tmp_path):
    text = printed("co_tune.py", str(tmp_path))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for device, base in zip(result["devices"], ("edge-neox", "edge-gpt2"), strict=True):
        name = device["name"]
        sent = f"{device['uplink_bytes'] / 1000:.1f} kB sent"
        assert re.search(rf"^{name} \({base}\): Rouge-L .* -> .*, {sent}$", text, re.MULTILINE)
        rows = read_samples(tmp_path / f"{name}.jsonl")
        before, after = (
            sum(
                answer_likelihoods(
                    load_model(path, runtime=RuntimeConfig(device="cpu")), rows
                ).log_likelihoods
            )
            for path in (zoo_dir(base), tmp_path / "run" / "adapters" / name)
        )
        assert after > before


def test_drafting_pays_on_a_near_link_and_not_on_a_far_one():
    rows = re.findall(r"(\d+) ms: streamed ([\d.]+) s, drafted ([\d.]+) s", printed("simulate_network.py"))
    assert [int(rtt_ms) for rtt_ms, _, _ in rows] == [20, 50, 100, 200]
    for rtt_ms, streamed, _ in rows:  # a token a pass, half a round trip each way, next to nothing for bytes
        assert float(streamed) == pytest.approx(400 * 0.04 + int(rtt_ms) / 1000, abs=0.001)
    near, far = rows[0], rows[-1]
    assert float(near[2]) < float(near[1]) / 1.5
    assert float(far[2]) > float(far[1])


def test_the_task_for_lm_eval_holds_rows_of_the_suite():
    lines = (EXAMPLES / "lm_eval" / "intents.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    known = {(row.instruction, row.input, row.output) for row in public_rows(200, seed=5)}
    assert len(rows) == 32
    assert {(row["instruction"], row["input"], row["output"]) for row in rows} <= known
