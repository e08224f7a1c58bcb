"""The doctor's second half: what the run of one configuration would meet on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from consort.align import align_rows
from consort.doctor import Finding, torch_devices
from consort.preflight import Preflight
from consort.preflight.memory import SMALLER, Forecast, Offer, available_memory, forecast_run
from consort.problems import counted

PAIR_ROWS = 20  # public rows on which the alignment of a pair of tokenizers is measured
LEAST_COVERAGE = 0.4  # below this, few positions of a pair can be taught without conditioning


def examine_run(found: Preflight) -> list[Finding]:
    """What the run of this configuration would meet here."""
    if found.serves_only:
        return list(check_problems(found))
    return [*check_problems(found), *check_memory(found), *check_pairs(found)]


def check_problems(found: Preflight) -> Iterator[Finding]:
    """The mistakes that `consort check` tells one by one."""
    errors = sum(problem.level == "error" for problem in found.problems)
    warnings = len(found.problems) - errors
    detail = f"{counted(errors, 'mistake')}, {counted(warnings, 'warning')}"
    if found.problems:
        yield Finding("configuration", "fail" if errors else "warn", detail, "consort check FILE tells each")
    else:
        yield Finding("configuration", "ok", detail)


def check_memory(found: Preflight) -> Iterator[Finding]:
    """Whether this machine can hold the run at its most demanding moment."""
    needed = forecast_run(found)
    if needed is None:
        yield Finding("memory", "warn", "not forecast: the size of a model is unknown", "consort check FILE")
        return
    forecast = Forecast(needed, _memory(found.config.runtime.device))
    if forecast.fits:
        yield Finding("memory", "ok", str(forecast))
    else:
        yield Finding("memory", "fail" if forecast.hopeless else "warn", str(forecast), SMALLER)


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


def _memory(device: str) -> Offer:
    """Memory for a run on this device, without a torch in this process, which may not start."""
    asked = torch_devices() if device.startswith(("auto", "cuda")) else ()
    cards = [card for card in asked if card.memory_bytes]
    if cards:
        card = next((card for card in cards if card.name == device), cards[0])
        return Offer(card.memory_bytes, f"on {card.name}")
    return available_memory()
