"""The doctor tells what is there, what is missing and what repairs it, and never fails itself."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest

from consort import doctor, doctor_run
from consort.doctor import Finding, check_cache, check_disk, check_extras, check_threads, examine_machine
from consort.models.gguf.library import INSTALL
from consort.preflight import examine_file
from tests import tiny_consort

consort = tiny_consort.consort


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1
    return findings[0]


def test_everything_but_ok_says_what_repairs_it(tmp_path: Path) -> None:
    findings = examine_machine(tmp_path)
    assert {"Python", "torch devices", "threads", "cache", "disk", "bundled models"} <= {
        f.name for f in findings
    }
    assert all(finding.repair for finding in findings if finding.state != "ok")


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a file where a folder should be"
    file.touch()
    monkeypatch.setenv("CONSORT_CACHE", str(file))
    assert only(list(check_cache())).state == "warn"
    assert "CONSORT_CACHE" in only(list(check_cache())).repair
    monkeypatch.setenv("CONSORT_CACHE", str(tmp_path / "new"))
    assert only(list(check_cache())).state == "ok"


def test_the_disk_of_a_run_directory_that_is_not_there_yet_is_its_nearest_folders(tmp_path: Path) -> None:
    found = only(list(check_disk(tmp_path / "runs" / "today")))
    assert found.state == "ok"
    assert str(tmp_path) in found.detail
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("policy", "threads", "state"), [("PASSIVE", "2", "ok"), ("ACTIVE", "1", "ok"), ("", "", "warn")]
)
def test_threads_that_would_collapse_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, policy: str, threads: str, state: str
) -> None:
    monkeypatch.setitem(os.environ, "OMP_WAIT_POLICY", policy)
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", threads)
    assert only(list(check_threads())).state == state


def is_installed() -> bool:
    try:
        return bool(importlib.metadata.version(doctor.DISTRIBUTION))
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not is_installed(), reason="consort runs from a checkout that was never installed")
def test_every_extra_is_listed_as_the_distribution_declares_it() -> None:
    names = {finding.name for finding in check_extras()}
    assert names == {doctor.DISTRIBUTION, *(f"extra {extra}" for extra in doctor.EXTRAS)}
    assert doctor.extra_of("torch") == "local"
    assert doctor.extra_of("llama_cpp") == "gguf"
    assert doctor.extra_of("no_such_module") == ""


def test_the_run_of_a_sound_configuration_fits_and_its_tokenizers_meet(consort: tiny_consort.Consort) -> None:
    findings = {finding.name: finding for finding in doctor_run.examine_run(examine_file(consort.file))}
    assert findings["configuration"].state == "ok"
    assert findings["memory"].state == "ok"
    assert "of positions cut alike" in findings["tokenizers of proxy and bank"].detail


def test_the_run_of_a_mistaken_configuration_is_a_finding_not_a_failure(
    consort: tiny_consort.Consort,
) -> None:
    (consort.folder / "edge" / "config.json").unlink()
    findings = {finding.name: finding for finding in doctor_run.examine_run(examine_file(consort.file))}
    assert findings["configuration"].state == "fail"
    assert findings["memory"].state == "warn"


def test_more_rows_a_step_than_the_machine_holds_is_told_before_it_is_tried(
    consort: tiny_consort.Consort,
) -> None:
    found = examine_file(consort.file, ["tune.batch_rows=100000000"])
    findings = {finding.name: finding for finding in doctor_run.examine_run(found)}
    assert findings["memory"].state == "fail"
    assert "tune.batch_rows" in findings["memory"].repair


def test_llama_cpp_is_said_to_build_as_long_wherever_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda program: None)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda module: None)
    assert only(list(doctor.check_llama_cpp())).repair == INSTALL
    quickstart = (Path(doctor.__file__).parents[1] / "docs" / "quickstart.md").read_text(encoding="utf-8")
    assert INSTALL.partition("(builds from source: ")[2].rstrip(")") in quickstart
