"""`consort serve` as a process of its own: killed it loses nothing, it writes no key, it speaks TLS."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from consort.errors import UpstreamError
from consort.gateway.keys import Key, add_key
from consort.gateway.ledger import Ledger
from consort.models.remote import Endpoint, Remote
from tests.gateway.live import CHAT
from tests.gateway.test_app import rows
from tests.models.test_remote import ASKED
from tests.upstream import CUT, EVENT_STREAM, Upstream, answer, event, framed, refusal, upstream

ROOT = Path(__file__).resolve().parents[2]
TURNS = [{"role": "user", "content": "when?"}]
UPSTREAM_KEY = "sk-upstream-0123456789abcdef"
WRONG_KEY = "ck-wrong-0123456789abcdef"


@dataclass
class Process:
    url: str
    secret: str
    process: asyncio.subprocess.Process
    http: aiohttp.ClientSession

    async def ask(self, secret: str = "", **body: Any) -> tuple[int, bytes]:
        """The status, and everything that came: headers and body."""
        headers = {"Authorization": f"Bearer {secret or self.secret}"}
        asked = {"messages": TURNS, **body}
        async with self.http.post(self.url + CHAT, json=asked, headers=headers) as response:
            return response.status, repr(response.headers).encode() + b"\n" + await response.read()

    async def shown(self, path: str) -> bytes:
        headers = {"Authorization": f"Bearer {self.secret}"}
        async with self.http.get(self.url + path, headers=headers) as response:
            assert response.status == 200
            return await response.read()


@asynccontextmanager
async def serving(
    folder: Path, up: Upstream, *, trusted: ssl.SSLContext | None = None, **serve: str
) -> AsyncIterator[Process]:
    """`consort serve` before an upstream, up to where it listens; killed at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    state = folder / "state"
    secret = add_key(state / "keys.json", Key("laptop"))
    serve |= {"state": str(state), "strategy": "edge"}
    lines = ["[serve]", f"port = {port}", *(f"{name} = {json.dumps(value)}" for name, value in serve.items())]
    lines += [
        "[[serve.edges]]",
        'name = "far"',
        'model = "m"',
        'key_env = "FAR_KEY"',
        f'base_url = "{up.url}"',
    ]
    (folder / "consort.toml").write_text("\n".join(lines))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "consort", "serve", "consort.toml",
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "FAR_KEY": UPSTREAM_KEY},
    )  # fmt: skip
    connector = aiohttp.TCPConnector(ssl=trusted) if trusted else None
    try:
        async with aiohttp.ClientSession(connector=connector) as http, asyncio.timeout(60):
            await _listening(port, process)
            yield Process(f"{'https' if trusted else 'http'}://127.0.0.1:{port}", secret, process, http)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _listening(port: int, process: asyncio.subprocess.Process) -> None:
    while process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        await writer.wait_closed()
        return
    assert process.stderr
    pytest.fail((await process.stderr.read()).decode())


def test_a_killed_process_keeps_every_answer_it_gave_and_no_key_is_written_anywhere(tmp_path: Path) -> None:
    quoted = b'{"error": {"message": "no: %s"}}' % UPSTREAM_KEY.encode()
    scripts = [answer("at ", "nine")] * 20 + [refusal(status, quoted) for status in (401, 400, 500, 500, 500)]
    scripts += [[EVENT_STREAM, framed(event("at ")), CUT]]

    async def work() -> tuple[list[bytes], str, list[str]]:
        async with upstream(*scripts) as up, serving(tmp_path, up) as here:
            given = [await here.ask(stream=stream) for stream in [False, True] * 10]
            failed = [await here.ask(stream=stream) for stream in (False, True, False, True, False)]
            failed += [await here.ask(WRONG_KEY), await here.ask(model="nobody"), await here.ask(seed="x")]
            assert [status for status, _ in given] == [200] * 20
            assert [status for status, _ in failed] == [502, 400, 502, 200, 502, 401, 404, 400]
            shown = [await here.shown(path) for path in ("/metrics", "/overview", "/v1/models")]
            here.process.send_signal(signal.SIGKILL)
            said = b"".join(await here.process.communicate())
            ids = [told.partition(b"chatcmpl-")[2][:32].decode() for _, told in given]
            return [said, *shown, *(body for _, body in given + failed)], here.secret, ids

    written, secret, ids = asyncio.run(work())
    state = tmp_path / "state"
    assert any(file.suffix == ".spool" for file in state.iterdir())
    written += [file.read_bytes() for file in state.iterdir()]
    for key in (secret, UPSTREAM_KEY, WRONG_KEY):
        assert not any(key.encode() in text or key[3:].encode() in text for text in written)
    Ledger(state).close()
    outcomes = {row["id"].removeprefix("chatcmpl-"): row["outcome"] for row in rows(state)}
    assert {outcomes[each] for each in ids} == {"done"}
    assert len(set(ids)) == 20
    assert sorted(outcomes.values()).count("done") == 20


def test_tls_is_spoken_with_a_certificate_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command, which makes the certificate")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
    command += " -keyout key.pem -out cert.pem -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    certificate = str(tmp_path / "cert.pem")
    trusted = ssl.create_default_context(cafile=certificate)
    files = {"tls_certificate": certificate, "tls_key": str(tmp_path / "key.pem")}

    async def work() -> None:
        async with (
            upstream(answer("at ", "nine")) as up,
            serving(tmp_path, up, trusted=trusted, **files) as here,
        ):
            status, body = await here.ask()
            assert status == 200
            assert orjson.loads(body.partition(b"\n")[2])["choices"][0]["message"]["content"] == "at nine"
            assert shutil.which("curl") is None or b"at nine" in await _curl(here, certificate)
            far = Endpoint("far", f"{here.url}/v1", "consort", here.secret, attempts=1)
            with pytest.raises(UpstreamError):  # nobody vouches for it
                await _text(far)
            monkeypatch.setenv("SSL_CERT_FILE", certificate)
            assert await _text(far) == "at nine"
            async with aiohttp.ClientSession() as plain:
                with pytest.raises(aiohttp.ClientError):
                    await plain.get(here.url.replace("https", "http") + "/health")

    asyncio.run(work())


async def _curl(here: Process, certificate: str) -> bytes:
    """What curl shows of a whole answer, on a connection that it trusts."""
    body = orjson.dumps({"messages": TURNS}).decode()
    command = ["curl", "--silent", "--fail", "--cacert", certificate, "--data", body]
    command += ["--header", f"Authorization: Bearer {here.secret}", here.url + CHAT]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    shown, _ = await process.communicate()
    return shown


async def _text(endpoint: Endpoint) -> str:
    lm = Remote(endpoint)
    try:
        return "".join([chunk.text async for chunk in lm.stream(ASKED)])
    finally:
        await lm.close()
