"""The co-tuning round over tiny real models on disk."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from consort.errors import ConsortError, UpdateError
from consort.federated.aggregate import apply_change
from consort.federated.cloud import Cloud, CloudState, Contribution
from consort.federated.co_plms import _accepted, _compared, _Judged, co_tune
from consort.federated.frames import unseal
from consort.federated.journal import Journal
from consort.federated.packets import ADAPTER, decode_adapter, encode_adapter
from consort.federated.party import FAILURES_LOG, Device, PrivateRows, Update
from consort.models.local import generate
from consort.training.adapters import SHARED, use_adapters
from consort.training.data import Sample, prompt_ids
from consort.training.proxy import load_proxy
from consort.types import Adapter
from tests.tunable_consort import rows, tunable_config


@pytest.fixture
def config(tmp_path):
    return tunable_config(tmp_path)


def cloud_and_devices(config, folder):
    devices = [
        Device(
            device,
            config,
            PrivateRows(rows(device.name), [Sample(row.prompt, None) for row in rows("more", 4)]),
            proxy_dir=config.proxy.model,
            folder=folder / device.name,
            seed=number,
        )
        for number, device in enumerate(config.devices)
    ]
    return Cloud(config, rows("public"), proxy_dir=config.proxy.model), devices


def run(config, folder, parties=None):
    """A run over its own devices, which the folder remembers, or over given ones."""
    if parties is None:
        cloud, devices = cloud_and_devices(config, folder)
    else:
        cloud, devices = Cloud(config, rows("public"), proxy_dir=config.proxy.model), []
    told = []
    with Journal.open(folder, fingerprint="one", resume=True) as journal:
        outcome = co_tune(cloud, parties or devices, config.tune, journal=journal, seed=0, report=told.append)
    return outcome, cloud.decode(outcome.cloud.broadcast), told


def equal(first: Adapter, second: Adapter):
    return all(np.array_equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_every_model_learns_and_every_message_is_counted(config, tmp_path):
    outcome, shared, _ = run(config, tmp_path / "run")
    assert any(np.any(tensor) for name, tensor in shared.tensors.items() if name.endswith("lora_B"))
    assert any(np.any(tensor) for name, tensor in outcome.cloud.llm.items() if "lora_B" in name)
    assert [(message.party, message.num_examples) for message in outcome.traffic] == [
        ("bank", 8),
        ("shop", 8),
    ] * 2
    assert all(
        message.uplink_bytes and message.downlink_bytes and not message.left_out
        for message in outcome.traffic
    )


class Unplugged:
    """A device whose machine loses power in the second round."""

    def __init__(self, device):
        self.name, self.device = device.name, device

    def local_round(self, shared, round_number):
        if round_number == 1:
            raise KeyboardInterrupt
        return self.device.local_round(shared, round_number)


def test_a_run_continued_after_a_stop_ends_in_the_same_bytes(config, tmp_path):
    whole, _, _ = run(config, tmp_path / "whole")
    _, (bank, shop) = cloud_and_devices(config, tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "stopped", [bank, Unplugged(shop)])
    continued, _, _ = run(config, tmp_path / "stopped")
    assert continued.cloud.packed() == whole.cloud.packed()
    assert continued.traffic == whole.traffic
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "stopped")]
    assert metrics[0] == metrics[1]


def test_what_leaves_a_device_is_the_shared_adapter_and_nothing_else(config, tmp_path):
    cloud, (bank, _) = cloud_and_devices(config, tmp_path / "run")
    shared = cloud.decode(cloud.first_broadcast())
    update = bank.local_round(shared, 0)
    moved = decode_adapter(update.packet, base_sha256=shared.base_sha256)
    assert moved.tensors.keys() == shared.tensors.keys()
    assert bank.local_round(shared, 0) == update  # asked again, the same bytes


CANARY = "Ottoline Quaverley"


def a_secretive_bank(config, folder, answer=CANARY):
    """The bank, whose rows hold a name that no other text does."""
    cloud, (bank, _) = cloud_and_devices(config, folder)
    private = [row.answered(answer) for row in rows("bank")]
    asked = [Sample(f"Who is {CANARY}? ", None)]
    return cloud, replace(bank, rows=PrivateRows(private, asked))


def spoken(told) -> bytes:
    return json.dumps(told, default=str, ensure_ascii=False).encode()


def test_no_text_of_a_row_is_in_anything_that_leaves_a_device(config, tmp_path):
    cloud, bank = a_secretive_bank(config, tmp_path / "run")
    update = bank.local_round(cloud.decode(cloud.first_broadcast()), 0)
    frame = unseal(update.packet, kind=ADAPTER)
    assert len(frame.sections) == 2  # 8 bits: scales and codes
    for part in (spoken(dict(frame.header)), *frame.sections, spoken(update.log)):
        assert not any(word.encode() in part for word in CANARY.split())
    allowed = {"phase", "round", "party", "step", "bank/ce", "bank/kl", "proxy/ce", "proxy/kl"}
    assert update.log
    assert all(row.keys() <= allowed for row in update.log)


def test_losses_stay_on_the_device_where_that_is_configured(config, tmp_path):
    quiet = replace(config, tune=replace(config.tune, send_losses=False))
    cloud, bank = a_secretive_bank(quiet, tmp_path / "run")
    assert bank.local_round(cloud.decode(cloud.first_broadcast()), 0).log == ()
    assert (tmp_path / "run" / "bank" / "metrics.jsonl").read_text()


def test_a_failure_is_told_by_its_kind_and_in_full_only_in_the_devices_folder(config, tmp_path):
    _, bank = a_secretive_bank(config, tmp_path / "run", answer=f"{CANARY} " * 40)
    with pytest.raises(ConsortError, match="no device completed") as caught:
        run(config, tmp_path / "run", [bank])
    assert f"bank: DataError (invalid_data); its run/bank/{FAILURES_LOG} says more" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and "bank" not in path.parts]
    assert written
    for part in (str(caught.value).encode(), *(path.read_bytes() for path in written)):
        assert not any(word.encode() in part for word in CANARY.split())
    assert "does not fit a context" in (tmp_path / "run" / "bank" / FAILURES_LOG).read_text()


class Talkative:
    """A party of somebody else, whose error quotes a row."""

    name = "talkative"

    def __init__(self, error):
        self.error = error

    def local_round(self, shared, round_number):
        raise self.error


@pytest.mark.parametrize("kind", [ValueError, MemoryError, KeyError, ZeroDivisionError, ConsortError])
def test_whatever_fails_in_a_party_only_leaves_it_out_and_is_not_quoted(kind, config, tmp_path):
    once = replace(config, tune=replace(config.tune, rounds=1))
    _, devices = cloud_and_devices(once, tmp_path / "devices")
    outcome, _, told = run(once, tmp_path / "run", [Talkative(kind(CANARY)), *devices])
    assert kind.__name__ in outcome.traffic[0].left_out
    assert CANARY not in str(told) + str(outcome.traffic)


def test_one_party_without_a_cloud_step_gets_its_own_adapter_back(config, tmp_path):
    tune = replace(config.tune, rounds=1, cloud_steps=0, update_bits=32)
    alone = replace(config, devices=config.devices[:1], tune=tune)
    _, shared, _ = run(alone, tmp_path / "run")
    cloud, (bank,) = cloud_and_devices(alone, tmp_path / "apart")
    start = cloud.decode(cloud.first_broadcast())
    update = bank.local_round(start, 0)
    assert equal(shared, apply_change(start, decode_adapter(update.packet, base_sha256=start.base_sha256)))


def test_a_taught_drafter_is_nearer_to_the_llm(config, tmp_path):
    taught = replace(
        config,
        tune=replace(config.tune, drafter_steps=40),
        proxy=replace(config.proxy, shared_rank=8, learning_rate=1e-2),
    )
    cloud = Cloud(taught, rows("public"), proxy_dir=config.proxy.model)
    state = CloudState({}, cloud.first_broadcast())
    llm, _ = cloud.load_llm(state)

    def distance(packet):
        """Total variation between the LLM's and the drafter's next tokens, in the LLM's answers."""
        drafter = load_proxy(
            config.proxy.model, taught.proxy, config.runtime, shared=cloud.decode(packet), seed=0
        )
        use_adapters(drafter, [SHARED])
        apart = []
        for row in rows("public"):
            asked = prompt_ids(row, llm)
            (said,) = generate(llm, [asked], max_new_tokens=4)
            ids = torch.tensor([[*asked, *said]])
            with torch.no_grad():
                first, second = (
                    model.module(input_ids=ids).logits[0, len(asked) - 1 :].softmax(-1)
                    for model in (llm, drafter)
                )
            apart.append(float((first - second).abs().sum(-1).mean()) / 2)
        return sum(apart) / len(apart)

    assert distance(cloud.teach_drafter(state).payload) < 0.95 * distance(state.broadcast)


def test_a_drafter_is_taught_after_the_last_round_and_the_round_is_as_without(config, tmp_path):
    with_it, without = (
        run(
            replace(config, tune=replace(config.tune, rounds=1, public_samples=0, drafter_steps=steps)),
            tmp_path / str(steps),
        )[0]
        for steps in (1, 0)
    )
    assert without.drafter == without.cloud.broadcast
    assert with_it.drafter != with_it.cloud.broadcast
    assert with_it.cloud.packed() == without.cloud.packed()
    assert with_it.traffic == without.traffic


def test_what_is_said_of_labelled_rows_comes_from_the_proxy_that_is_configured(config, tmp_path):
    def slm(teacher, domain_steps, *, moved=0.0):
        tune = replace(
            config.tune,
            labelled_teacher=teacher,
            domain_steps=domain_steps,
            proxy_answers=0,
            proxy_share=0.0,
            doubt=0.0,
        )
        folder = tmp_path / f"{teacher}-{domain_steps}-{moved}"
        cloud, (bank, _) = cloud_and_devices(replace(config, tune=tune), folder)
        shared = cloud.decode(cloud.first_broadcast())
        tensors = {name: array + np.float32(moved) for name, array in shared.tensors.items()}
        bank.local_round(replace(shared, tensors=tensors), 0)
        return bank.state().slm

    def same(first, second):
        return all(np.array_equal(first[name], second[name]) for name in first)

    assert same(slm("distilled", 1), slm("distilled", 6, moved=0.1))
    assert same(slm("distilled", 1), slm("broadcast", 1))  # nobody has learned anything yet
    assert same(slm("broadcast", 1), slm("broadcast", 6))
    assert not same(slm("broadcast", 1), slm("broadcast", 1, moved=0.1))
    assert not same(slm("specialised", 1), slm("specialised", 6))


class Broken:
    name = "broken"

    def local_round(self, shared, round_number):
        raise RuntimeError("out of memory")


class Poisoned:
    name = "poisoned"

    def __init__(self, size=1e30, num_examples=1_000_000):
        self.size, self.num_examples = size, num_examples

    def local_round(self, shared, round_number):
        huge = {name: np.full_like(tensor, self.size) for name, tensor in shared.tensors.items()}
        packet, _ = encode_adapter(Adapter(huge, shared.scaling, shared.base_sha256), bits=32)
        return Update(self.name, round_number, packet, self.num_examples)


@pytest.mark.parametrize("claimed", [0, -1, 10.5, True, float("inf"), float("nan"), 1 << 60, "many"])
def test_a_number_of_rows_that_cannot_be_is_refused(claimed, config, tmp_path):
    cloud, _ = cloud_and_devices(config, tmp_path)
    shared = cloud.decode(cloud.first_broadcast())
    update = replace(Poisoned(1e-3).local_round(shared, 0), num_examples=claimed)
    judged = _accepted(update, "", shared, config.tune)
    assert judged.contribution is None
    assert "training rows" in judged.failure


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_what_stands_out_of_a_round_is_refused_or_counts_for_less_at_any_scale(scale):
    def judged(norms, examples=(100, 100, 100, 100), ratio=10.0):
        given = [
            _Judged(Contribution(str(number), Adapter({}, 1.0, ""), rows), scale * norm, "")
            for number, (norm, rows) in enumerate(zip(norms, examples, strict=False))
        ]
        return [each.contribution and each.contribution.num_examples for each in _compared(given, ratio)]

    assert judged([1, 2, 3, 9]) == [100] * 4
    assert judged([1, 2, 3, 90]) == [100, 100, 100, None]
    assert judged([1, 2, 3, 90], ratio=0.0) == [100] * 4
    assert judged([1, 90]) == [100, 100]  # of two, nobody can say which one stands out
    assert judged([0, 0, 0, 1]) == [100] * 4
    assert judged([1, 1, 1, 1], (100, 100, 100, 10**9)) == [100, 100, 100, 1000]


def test_a_device_that_fails_or_sends_nonsense_is_left_out_and_named(config, tmp_path):
    config = replace(config, tune=replace(config.tune, rounds=1))
    _, devices = cloud_and_devices(config, tmp_path / "run")
    outcome, shared, told = run(config, tmp_path / "other", [Broken(), *devices, Poisoned()])
    left_out = {message.party: message.left_out for message in outcome.traffic if message.left_out}
    assert left_out.keys() == {"broken", "poisoned"}
    assert left_out["broken"] == "RuntimeError"
    assert any("poisoned is left out" in line for line in told)
    _, without, _ = run(config, tmp_path / "without", devices)
    assert equal(shared, without)


def test_a_round_begins_from_the_round_before_it_even_where_later_ones_are_done(config, tmp_path):
    cloud, (bank, _) = cloud_and_devices(config, tmp_path / "run")
    shared = cloud.decode(cloud.first_broadcast())
    expected = bank.local_round(shared, 0)
    other = replace(bank, folder=tmp_path / "other")
    other.local_round(shared, 1)  # out of order: a round that a device missed is asked for again
    assert other.local_round(shared, 0) == expected


def test_non_finite_numbers_never_become_a_packet(config, tmp_path):
    cloud, _ = cloud_and_devices(config, tmp_path / "run")
    shared = cloud.decode(cloud.first_broadcast())
    bad = {name: np.full_like(tensor, np.nan) for name, tensor in shared.tensors.items()}
    with pytest.raises(UpdateError):
        encode_adapter(Adapter(bad, shared.scaling, shared.base_sha256), bits=8)


def test_a_round_that_no_device_completes_stops_the_run_with_the_reasons(config, tmp_path):
    with pytest.raises(ConsortError, match=r"no device completed round 1"):
        run(config, tmp_path / "run", [Broken()])


def test_partial_participation_draws_the_same_parties_for_a_seed(config, tmp_path):
    half = replace(config, tune=replace(config.tune, participation=0.5, cloud_steps=0))
    drawn = [[message.party for message in run(half, tmp_path / name)[0].traffic] for name in ("a", "b")]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 2
