"""A file is replaced whole, or stays what it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from consort.files import whole_file


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("contended", [False, True])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(
    durable: bool, contended: bool, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    with whole_file(path, durable=durable, contended=contended) as file:
        file.write(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"
    with pytest.raises(KeyboardInterrupt):
        interrupted(path, durable=durable, contended=contended)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def interrupted(path: Path, *, durable: bool, contended: bool) -> None:
    with whole_file(path, durable=durable, contended=contended) as file:
        file.write(b"sec")
        raise KeyboardInterrupt


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole_file(path, contended=True) as one:
        one.write(b"one, ")
        with whole_file(path, contended=True) as two:
            two.write(b"two")
        one.write(b"whole")
    assert path.read_bytes() == b"one, whole"


def test_what_a_crash_left_unfinished_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file.tmp").write_bytes(b"a longer beginning of something")
    with whole_file(tmp_path / "file") as file:
        file.write(b"short")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"short"]
