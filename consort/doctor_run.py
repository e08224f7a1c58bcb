"""The doctor's second half: what the run of one configuration would meet on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from consort.align import align_rows
from consort.doctor import GIGA, Finding, torch_devices
from consort.models.footprint import RUNTIME_BYTES
from consort.preflight import Preflight
from consort.preflight.models import forecast_cloud, forecast_device, forecast_proxy

PAIR_ROWS = 20  # public rows on which the alignment of a pair of tokenizers is measured
LEAST_COVERAGE = 0.4  # below this, few positions of a pair can be taught without conditioning


def examine_run(found: Preflight) -> list[Finding]:
    """What the run of this configuration would meet here."""
    return [*check_problems(found), *check_memory(found), *check_pairs(found)]


def check_problems(found: Preflight) -> Iterator[Finding]:
    """The mistakes that `consort check` tells one by one."""
    errors = sum(problem.level == "error" for problem in found.problems)
    warnings = len(found.problems) - errors
    detail = f"{errors} mistakes, {warnings} warnings"
    if found.problems:
        yield Finding("configuration", "fail" if errors else "warn", detail, "consort check FILE tells each")
    else:
        yield Finding("configuration", "ok", detail)


def check_memory(found: Preflight) -> Iterator[Finding]:
    """Whether this machine can hold all parties of the run at once, `runtime.workers` of them learning."""
    assert found.models is not None, "the doctor looks at the models"
    devices = [forecast_device(found.models, index) for index in range(len(found.config.devices))]
    parties = [forecast_cloud(found.models), forecast_proxy(found.models), *devices]
    known = [party for party in parties if party is not None]
    if len(known) < len(parties):
        yield Finding("memory", "warn", "not forecast: the size of a model is unknown", "consort check FILE")
        return
    held = sum(party.frozen_bytes + party.learned_bytes for party in known)
    learning = max(party.activation_bytes for party in known) + RUNTIME_BYTES
    needed = held + found.config.runtime.workers * learning
    offered, place = _memory(found.config.runtime.device)
    detail = f"about {needed / GIGA:.1f} GB needed, {offered / GIGA:.1f} GB {place}"
    if needed <= offered:
        yield Finding("memory", "ok", detail)
    else:
        yield Finding(
            "memory",
            "fail",
            detail,
            'smaller models, trainable = "lora", fewer tune.batch_rows, max_tokens or runtime.workers',
        )


def check_pairs(found: Preflight) -> Iterator[Finding]:
    """How much two models with different tokenizers can teach each other: positions cut alike."""
    assert found.models is not None, "the doctor looks at the models"
    known = found.models.known
    proxy = known.get("proxy.model") or known.get("cloud.model")
    answers = (
        [sample.answer for sample in found.rows["public"].samples if sample.answer][:PAIR_ROWS]
        if found.rows
        else []
    )
    for index, device in enumerate(found.config.devices):
        slm = known.get(f"devices.{index}.slm.model")
        if not (proxy and slm and proxy.vocabulary and slm.vocabulary and answers):
            continue
        aligned = rows = 0
        for answer in answers:
            target = slm.vocabulary.spans(answer)
            aligned += len(align_rows(proxy.vocabulary.spans(answer), target).target)
            rows += len(target.ids) + 1
        share = aligned / rows
        state: Literal["ok", "warn"] = "ok" if share >= LEAST_COVERAGE else "warn"
        repair = (
            ""
            if share >= LEAST_COVERAGE
            else "keep tune.condition_in_token = true, which teaches inside tokens"
        )
        yield Finding(
            f"tokenizers of proxy and {device.name}", state, f"{share:.0%} of positions cut alike", repair
        )


def _memory(device: str) -> tuple[float, str]:
    """Bytes offered to a run on this device, and where."""
    asked = torch_devices() if device.startswith(("auto", "cuda")) else ()
    cards = [card for card in asked if card.memory_bytes]
    if cards:
        card = next((card for card in cards if card.name == device), cards[0])
        return card.memory_bytes, f"on {card.name}"
    import psutil

    return psutil.virtual_memory().available, "available"
