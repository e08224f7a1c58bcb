"""Rates of any size let through what they say, and a file of keys that is edited wrongly shuts nobody out."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consort.errors import AccessError, LimitError
from consort.gateway.keys import Door, Key, add_key, revoke_key
from tests.gateway.live import live


@given(per_minute=st.floats(1e-3, 50), minutes=st.integers(1, 500))
def test_a_key_lets_its_rate_through_at_any_size_and_says_how_long_to_wait(
    tmp_path_factory: pytest.TempPathFactory, per_minute: float, minutes: int
) -> None:
    folder = tmp_path_factory.mktemp("keys")
    clock = [0.0]
    secret = add_key(folder / "keys.json", Key("slow", per_minute=per_minute)).encode()
    door = Door(folder / "keys.json", clock=lambda: clock[0])
    let_in = 0
    while clock[0] < 60 * minutes and let_in < 100:
        try:
            door.enter(b"Bearer " + secret)
            let_in += 1
        except LimitError as refused:
            clock[0] += refused.retry_s  # whoever waits as long as it says is let in
            door.enter(b"Bearer " + secret)
            let_in += 1
    passed = clock[0] / 60
    assert let_in <= max(1, per_minute) + per_minute * passed + 1e-6
    # a wait is told in whole seconds, and never as more than a day
    assert let_in >= min(100, per_minute * passed / (1 + per_minute / 60)) - 1


def test_even_the_smallest_rate_is_told_in_a_wait_of_a_day_at_most(tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys.json", Key("slow", per_minute=5e-324)).encode()
    door = Door(tmp_path / "keys.json")
    assert door.enter(secret).name == "slow"
    with pytest.raises(LimitError) as refused:
        door.enter(secret)
    assert refused.value.retry_s == 86_400


BROKEN = [
    b"",
    b"[{",
    b"\xff\xfe",
    b"7",
    b'{"name": "x"}',
    b'[{"name": "hidden", "budget": "12 euros"}]',
    b'[{"name": "hidden", "per_minute": -1}]',
    b'[{"name": "hidden", "sha256": ["a"]}]',
    b'[{"name": "hidden", "secret": "x"}]',
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_file_that_is_broken_while_serving_leaves_the_keys_of_before_in_force(
    tmp_path: Path, broken: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file, clock = tmp_path / "keys.json", [0.0]
    secret = add_key(file, Key("laptop")).encode()
    whole = file.read_bytes()
    door = Door(file, required=True, clock=lambda: clock[0])
    for edited in (broken, broken + b" "):
        file.write_bytes(edited)
        for _ in range(3):
            clock[0] += 2.0
            assert door.enter(b"Bearer " + secret).name == "laptop"
            with pytest.raises(AccessError):
                door.enter(b"")
        (line,) = capsys.readouterr().err.splitlines()
        assert str(file) in line
        assert "stay in force" in line
    file.write_bytes(whole)
    revoke_key(file, "laptop")
    clock[0] += 2.0
    with pytest.raises(AccessError):
        door.enter(b"Bearer " + secret)


def test_no_client_hears_of_the_broken_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    secret = add_key(file, Key("laptop"))

    async def work() -> list[tuple[int, bytes]]:
        found = []
        async with live(tmp_path) as here:
            here.service.door.required = True
            file.write_bytes(BROKEN[5])
            os.utime(file, ns=(1, 1))
            for given in (secret, "ck-wrong", ""):
                here.service.door._read_at = -10.0
                headers = {"Authorization": f"Bearer {given}"} if given else {}
                async with here.http.get(here.url + "/v1/models", headers=headers) as response:
                    found.append((response.status, await response.read()))
        return found

    found = asyncio.run(work())
    assert [status for status, _ in found] == [200, 401, 401]
    told = b"".join(body for _, body in found[1:])
    assert not any(word in told for word in (b"hidden", b"12 euros", str(tmp_path).encode()))
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert orjson.loads(found[0][1])["object"] == "list"
