"""The real consortium's rows: who may have read what."""

from __future__ import annotations

import pytest
import real_data


@pytest.fixture(scope="module", params=[0, 1])
def rows(request) -> real_data.RealData:
    if not (real_data.data_dir() / "tasks").exists():
        pytest.skip(f"no data at {real_data.data_dir()}: set CONSORT_DATA to the folder with tasks/")
    return real_data.load(request.param)


def prompts(samples) -> set:
    return {sample.prompt for sample in samples}


def test_nobody_has_read_a_row_that_somebody_is_measured_on(rows):
    read = prompts(row for public in rows.public.values() for row in public)
    for device in rows.devices.values():
        read |= prompts(device.train) | prompts(device.unlabelled)
    measured = [rows.lacked, rows.public_test, *(device.test for device in rows.devices.values())]
    assert not read & prompts(row for part in measured for row in part)


def test_a_devices_rows_are_not_public(rows):
    for name, device in rows.devices.items():
        own = prompts([*device.train, *device.unlabelled, *device.valid])
        assert not own & prompts(rows.public[name]), name
        assert [len(device.train), len(device.unlabelled)] == [
            real_data.PRIVATE_ROWS,
            real_data.UNLABELLED_ROWS,
        ]


def test_the_public_rows_lack_the_domains_that_the_cloud_is_measured_on(rows):
    lacked = {row.answer for row in rows.lacked}
    assert lacked
    assert not lacked & {row.answer for row in rows.public["assistant"]}
