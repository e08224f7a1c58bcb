"""The tables of the real experiment, on made-up results whose means and gains are worked out by hand."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from co_tuning_table import page, read_runs, summarise, write

# EM by seed, mean over the devices; Rouge-L is 0.1 above
MEAN_EM = {
    "zero_shot": {0: 0.10},
    "alone": {0: 0.20, 1: 0.25, 2: 0.30},
    "co_plms": {0: 0.30, 1: 0.30, 2: 0.60},
    "without_dst": {0: 0.30, 1: 0.30, 2: 0.30},
    "fed_lora": {0: 0.25, 1: 0.25, 2: 0.25},
    "fed_mkt": {0: 0.24, 1: 0.28},
}
ABOVE_MEAN = {"bank": 0.05, "restaurant": 0.10, "clinic": -0.10, "assistant": -0.05}
UNTOUCHED = {
    "bank": 0.40,
    "restaurant": 0.50,
    "clinic": 0.02,
    "assistant": 0.30,
    "lacked": 0.0,
    "elsewhere": 0.20,
}


def scores(em: float) -> dict[str, float]:
    return {"em": em, "rouge_l": em + 0.1, "em_stderr": 0.03, "rouge_l_stderr": 0.02, "rows": 200}


def result(arm: str, seed: int) -> dict[str, object]:
    """As `real_co_tuning.run_arm` writes it."""
    em, federated = MEAN_EM[arm][seed], arm in ("co_plms", "without_dst", "fed_lora", "fed_mkt")
    sent = {name: 100_000 + 20_000 * number + 3_000 * seed for number, name in enumerate(ABOVE_MEAN)}
    found: dict[str, object] = {
        "arm": arm,
        "commit": "abc1234",
        "seed": seed,
        "seconds": 1.0,
        "devices": {
            name: scores(em + above) | {"majority": 0.10 + 0.01 * seed + above}
            for name, above in ABOVE_MEAN.items()
        },
        "uplink_bytes": sent if federated else {},
        "downlink_bytes": dict.fromkeys(sent, 2_000_000) if federated else {},
    }
    if arm == "zero_shot":
        found["cloud"] = {name: scores(share) for name, share in UNTOUCHED.items()}
    if arm in ("co_plms", "fed_mkt"):
        found["cloud"] = {name: scores(share + 0.01 * seed) for name, share in UNTOUCHED.items()}
    if arm == "co_plms":
        found["proxies"] = {name: scores(em + above + 0.02) for name, above in ABOVE_MEAN.items()}
        found["memorised"] = {"prompts": 500, "private": seed}
    return found


def write_results(work: Path, arms=MEAN_EM) -> Path:
    (work / "results").mkdir(parents=True)
    for arm in arms:
        for seed in MEAN_EM[arm]:
            (work / "results" / f"{arm}-{seed}.json").write_text(json.dumps(result(arm, seed)))
    return work / "results"


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    return summarise(read_runs(write_results(tmp_path_factory.mktemp("work"))))


@pytest.fixture(scope="module")
def text(summary):
    return page(summary, measured="commit 1234567; a machine")


def table(text: str, heading: str) -> dict[str, dict[str, list[str]]]:
    """Rows under a heading by their first cell, then cells by column; two columns may share a name."""
    lines = text.split(f"# {heading}\n")[1].split("\n#")[0].splitlines()
    header, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line[:1] == "|"]
    return {
        row[0]: {
            name: [cell for key, cell in zip(header, row, strict=True) if key == name] for name in header
        }
        for row in rows
    }


OWN, EM, CLOUD_EM = "The devices' own models", "EM, device by device", "EM of the cloud model"
ALONE, CO_PLMS, FED_MKT = "alone", "**Co-PLMs**", "FedMKT (2 of 3 seeds)"


def test_means_and_standard_errors_are_over_seeds(summary, text):
    assert summary["arms"]["co_plms"]["mean"]["em"] == pytest.approx({"mean": 0.4, "stderr": 0.1, "seeds": 3})
    own, by_device = table(text, OWN), table(text, EM)
    assert own[ALONE]["EM"] == ["25.0 ± 2.9"]  # 0.05 / sqrt(3)
    assert own[ALONE]["Rouge-L"] == ["35.0 ± 2.9"]
    assert own[CO_PLMS]["EM"] == ["40.0 ± 10.0"]
    assert by_device[ALONE]["bank"] == ["30.0 ± 2.9"]
    assert by_device[CO_PLMS]["clinic"] == ["30.0 ± 10.0"]
    assert table(text, "Rouge-L, device by device")[CO_PLMS]["clinic"] == ["40.0 ± 10.0"]


def test_gains_are_paired_with_alone_by_seed(text):
    # co_plms: +0.5, +0.2, +1.0 of its seed's alone, which is not 0.40 / 0.25 - 1 = +0.6
    rows = table(text, OWN)
    assert rows[CO_PLMS]["gain"][0] == "+56.7 ± 23.3 %"
    # fed_mkt: +0.20, +0.12; against alone's mean of all three seeds it would be +0.04
    assert rows[FED_MKT]["gain"][0] == "+16.0 ± 4.0 %"
    assert rows[ALONE]["gain"] == ["–", "–"]


def test_an_arm_that_lacks_seeds_says_so_everywhere_and_changes_no_other(summary, text, tmp_path):
    for heading in (OWN, EM, CLOUD_EM):
        assert FED_MKT in table(text, heading)
        assert "FedMKT" not in table(text, heading)
    assert table(text, OWN)[FED_MKT]["EM"] == ["26.0 ± 2.0"]
    assert summary["arms"]["fed_mkt"]["seeds"] == [0, 1]
    without = summarise(read_runs(write_results(tmp_path, [arm for arm in MEAN_EM if arm != "fed_mkt"])))
    assert without["arms"] == {arm: found for arm, found in summary["arms"].items() if arm != "fed_mkt"}
    assert without["majority"] == summary["majority"]


def test_zero_shot_has_one_seed_for_all(text):
    row = table(text, OWN)["zero-shot"]
    assert row["EM"] == ["10.0"]
    assert row["gain"][0] == "-58.9 ± 4.8 %"  # -0.5, -0.6, -0.667 of the three seeds of alone


def test_majority_baselines_stand_beside_em(text):
    assert table(text, OWN)["*most frequent answer*"]["EM"] == ["11.0 ± 0.6"]
    assert table(text, EM)["*most frequent answer*"]["restaurant"] == ["21.0 ± 0.6"]
    assert "*most frequent answer*" not in table(text, "Rouge-L, device by device")


def test_bytes_are_those_of_a_device_and_absent_where_nothing_travels(text):
    rows = table(text, OWN)
    assert (rows[CO_PLMS]["up"], rows[CO_PLMS]["down"]) == (["133 kB"], ["2,000 kB"])
    assert rows[ALONE]["up"] == rows["zero-shot"]["down"] == ["–"]


def test_an_arm_without_a_cloud_has_that_of_zero_shot(summary, text):
    untouched = summary["arms"]["zero_shot"]["cloud"]
    for arm in ("alone", "without_dst", "fed_lora"):
        for name, share in UNTOUCHED.items():
            assert summary["arms"][arm]["cloud"][name]["em"]["mean"] == pytest.approx(share)
    assert untouched["bank"]["em"] == pytest.approx({"mean": 0.4, "stderr": 0.0, "seeds": 1})
    rows = table(text, CLOUD_EM)
    assert rows["zero-shot"]["bank"] == ["40.0"]
    assert rows[CO_PLMS]["elsewhere"] == ["21.0 ± 0.6"]
    # and is named instead of repeated
    assert rows.keys() == {"zero-shot", CO_PLMS, FED_MKT}
    (line,) = [line for line in text.splitlines() if line.startswith("As in zero-shot")]
    assert line.endswith(": alone; FedLoRA; Co-PLMs without DST.")


def test_a_cloud_measured_all_the_same_counts_as_untouched_too(tmp_path):
    folder = write_results(tmp_path)
    file = folder / "alone-0.json"
    cloud = {name: scores(share) for name, share in UNTOUCHED.items()}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cloud": cloud}))
    found = summarise(read_runs(folder))
    assert not found["arms"]["alone"]["changes_llm"]
    assert ALONE not in table(page(found, measured="here"), CLOUD_EM)


def test_specialised_proxies_and_memorised_prompts_are_shown(text):
    assert table(text, "EM of the proxies") == {
        CO_PLMS: {"": [CO_PLMS]}
        | {name: [f"{100 * (0.42 + above):.1f} ± 10.0"] for name, above in ABOVE_MEAN.items()}
    }
    row = table(text, "What the shared adapter memorised")[CO_PLMS]
    assert (row["made up"], row["private"]) == (["1,500"], ["3"])


def test_proxies_measured_for_some_seeds_only_say_so(tmp_path):
    folder = write_results(tmp_path)
    file = folder / "co_plms-2.json"
    run = json.loads(file.read_text())
    del run["proxies"]
    file.write_text(json.dumps(run))
    text = page(summarise(read_runs(folder)), measured="here")
    assert list(table(text, "EM of the proxies")) == ["**Co-PLMs** (2 of 3 seeds)"]
    assert CO_PLMS in table(text, EM)


def test_parts_stand_apart_below_the_whole(text):
    assert list(table(text, "Co-PLMs without each of its parts")) == [CO_PLMS, "Co-PLMs without DST"]
    assert "Co-PLMs without DST" not in table(text, OWN)


def test_what_was_not_run_is_named_and_an_arm_without_a_label_is_not_lost(tmp_path, text):
    assert "Not run: one-directional, labelled rows only; one-directional; **Co-PLMs, labelled" in text
    assert "; FedCoLLM; " in text
    folder = write_results(tmp_path)
    (folder / "my_arm-1.json").write_text(json.dumps(result("alone", 1) | {"arm": "my_arm"}))
    found = page(summarise(read_runs(folder)), measured="here")
    assert table(found, OWN)["my_arm (1 of 3 seeds)"]["EM"] == ["25.0"]


@pytest.mark.parametrize("arms", [["co_plms"], ["zero_shot"], ["zero_shot", "fed_mkt"]])
def test_without_alone_there_is_a_table_but_no_gain(arms, tmp_path):
    rows = table(page(summarise(read_runs(write_results(tmp_path, arms))), measured="here"), OWN)
    assert all(row["gain"] == ["–", "–"] for row in rows.values())


def test_a_gain_over_nothing_is_not_a_number(tmp_path):
    folder = write_results(tmp_path)
    for seed in MEAN_EM["alone"]:
        file = folder / f"alone-{seed}.json"
        nothing = json.loads(file.read_text())
        for device in nothing["devices"].values():
            device["em"] = 0.0
        file.write_text(json.dumps(nothing))
    row = table(page(summarise(read_runs(folder)), measured="here"), OWN)[CO_PLMS]
    assert row["gain"][0] == "–"
    assert row["gain"][1].startswith("+")


def test_no_results_is_told_with_what_to_do(tmp_path):
    with pytest.raises(SystemExit, match=r"real_co_tuning\.py run"):
        read_runs(tmp_path)


def test_columns_have_one_width_and_name_where_the_numbers_come_from(text):
    assert "commit 1234567; a machine; seeds 0, 1, 2." in text
    lines = text.splitlines()
    for line, following in pairwise(lines):
        if line.startswith("|") and following.startswith("|"):
            assert len(line) == len(following)


def test_arms_that_serve_the_proxy_stand_beside_the_specialised_proxies_and_not_the_devices_models(text):
    rows = table(text, "Where a device can serve the proxy itself")
    assert rows["FedLoRA"]["EM"] == ["25.0 ± 0.0"]
    assert rows["**Co-PLMs**, its proxies"]["EM"] == ["42.0 ± 10.0"]
    assert "FedLoRA" not in table(text, OWN)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the machine is named on Linux only")
def test_both_files_are_written(tmp_path, capsys):
    write_results(tmp_path)
    write(tmp_path / "results", tmp_path / "new" / "results")
    written = json.loads((tmp_path / "new" / "results" / "co_tuning.json").read_text())
    assert written["arms"]["alone"]["gain"]["em"]["mean"] == 0
    text = (tmp_path / "new" / "results" / "co_tuning.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
