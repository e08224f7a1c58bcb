"""A run that this machine cannot hold is refused before it starts, and one that may fit is not."""

from __future__ import annotations

import pytest

from consort.errors import ConfigError
from consort.models.footprint import RUNTIME_BYTES
from consort.preflight import examine_file, load_checked
from consort.preflight.memory import GIGA, UNSURE, Offer, forecast_device, forecast_run, require_memory
from tests import tiny_consort
from tests.tiny_consort import Consort, write_rows

consort = tiny_consort.consort


def needed(consort: Consort, *overrides: str) -> float:
    found = forecast_run(examine_file(consort.file, ["tune.batch_rows=100000", *overrides]))
    assert found is not None
    return found


def test_longer_rows_need_more_and_room_that_no_row_uses_nothing(consort: Consort) -> None:
    few = needed(consort)
    assert needed(consort, "devices.bank.slm.max_tokens=32") == few
    write_rows(consort.folder / "bank" / "train.jsonl", [{"prompt": "many words " * 4, "completion": "b"}])
    assert needed(consort) > few


def test_an_answer_that_the_proxy_will_write_counts_as_long_as_it_may_become(consort: Consort) -> None:
    write_rows(consort.folder / "clinic" / "inputs.jsonl", [{"prompt": "many words " * 3}])
    assert needed(consort, "eval.max_new_tokens=20") > needed(consort, "eval.max_new_tokens=4")


def test_every_process_needs_its_own(consort: Consort) -> None:
    assert needed(consort, "runtime.workers=2") > needed(consort) > needed(consort, "tune.batch_rows=10")


def test_more_devices_one_after_another_hardly_need_more(consort: Consort) -> None:
    alone = needed(consort)
    consort.replace("[eval]", '[[devices]]\nname = "shop"\ndata = "bank"\nslm.model = "edge"\n[eval]')
    assert needed(consort) == pytest.approx(alone, rel=0.01)


@pytest.mark.parametrize(("share", "refused"), [(1.0, False), (0.99 / UNSURE, True), (1.01 / UNSURE, False)])
def test_refused_is_what_exceeds_the_memory_by_more_than_the_forecast_can_be_wrong(
    consort: Consort, share: float, refused: bool
) -> None:
    found = examine_file(consort.file)
    offer = Offer(share * (forecast_run(found) or 0), "available")
    if not refused:
        require_memory(found, offer, where="here")
        return
    with pytest.raises(ConfigError, match=r"here: too little memory .* needed, .* available") as caught:
        require_memory(found, offer, where="here")
    assert "--ignore-memory" in caught.value.hint


@pytest.mark.parametrize(
    ("share", "levels"),
    [(1.01, []), (0.99, ["warning"]), (1.01 / UNSURE, ["warning"]), (0.99 / UNSURE, ["error"])],
)
def test_a_devices_memory_is_judged_as_this_machines(
    consort: Consort, share: float, levels: list[str]
) -> None:
    survey = examine_file(consort.file).models
    assert survey is not None
    footprint = forecast_device(survey, 0)
    assert footprint is not None
    has = share * (footprint.total_bytes + RUNTIME_BYTES) / GIGA
    overrides = [f"devices.bank.memory_gb={has:.9f}"]
    assert [problem.level for problem in examine_file(consort.file, overrides).problems] == levels
    if "error" in levels:
        with pytest.raises(ConfigError, match="--ignore-memory"):
            load_checked(consort.file, overrides)
    assert load_checked(consort.file, overrides, memory=False).ok


def test_a_model_of_unknown_size_is_not_refused(consort: Consort) -> None:
    (consort.folder / "edge" / "model.safetensors").unlink()
    found = examine_file(consort.file)
    assert forecast_run(found) is None
    require_memory(found, Offer(0, "available"), where="here")
