"""The document at `/openapi.json` says what the parser does, and a fuzz by it finds no failure of ours."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import orjson
import pytest

from consort.config_serve import ServeConfig
from consort.gateway.keys import Key, add_key
from consort.gateway.openai_request import DESCRIBE, KNOWN, NEUTRAL
from consort.gateway.openapi import description
from consort.gateway.parameters import Parameters
from consort.models.decoding.lm import LocalLM
from tests.gateway.live import live
from tests.gateway.test_app import rows
from tests.tiny_models import tiny

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_schema_conformance", "negative_data_rejection", "unsupported_method", "ignored_auth",
)  # fmt: skip
CASES = "40"  # of each operation
ROOT = Path(__file__).resolve().parents[2]
Serving: TypeAlias = "Callable[[Path], contextlib.AbstractContextManager[str]]"
ONLY_CHAT = {"messages", "tools", "tool_choice", "top_logprobs"}


def test_the_document_names_what_the_parser_knows() -> None:
    schemas = description([])["components"]["schemas"]
    everything = KNOWN | DESCRIBE | NEUTRAL.keys()
    assert schemas["Chat"]["properties"].keys() == everything - {"prompt"}
    assert schemas["Text"]["properties"].keys() == everything - ONLY_CHAT
    assert schemas["Parameters"]["properties"].keys() == {field.name for field in fields(Parameters)}


@pytest.mark.parametrize("room", [0, 2])
def test_every_path_is_served_and_every_reference_resolves(tmp_path: Path, room: int) -> None:
    cloud = LocalLM(tiny(), answers=1, sessions=0, context_tokens=64) if room else None

    async def work() -> None:
        async with live(tmp_path, cloud=cloud, room=room) as here:
            async with here.http.get(f"{here.url}/openapi.json") as response:
                told = orjson.loads(await response.read())
            for path, methods in told["paths"].items():
                assert len(methods) == 1
                where = here.url + path.replace("{model}", "small")
                async with here.http.request(next(iter(methods)), where) as response:
                    assert response.status == (200 if "get" in methods else 400), path
            assert told == description(here.service.names(), sessions=room > 0)

    asyncio.run(work())
    document = description([], sessions=True)
    for reference in _references(document):
        assert reference.rpartition("/")[2] in document["components"]["schemas"], reference


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        node = list(node.values())
    for inner in node if isinstance(node, list) else ():
        yield from _references(inner)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The gateway in a thread of its own, for clients that wait."""
    address: list[str] = []
    loop, is_up, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def work() -> None:
        async with live(folder) as here:
            address.append(here.url)
            is_up.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(work(),))
    thread.start()
    assert is_up.wait(20)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@contextlib.contextmanager
def bundled(folder: Path) -> Iterator[str]:
    """`consort serve` as it comes: the bundled models, with the proxy, every strategy and redaction."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "consort", "serve", "--state", str(folder), "--port", str(port)]
    command += ["--set", "serve.shadow_share=0.1", "--set", "runtime.device=cpu"]
    with (
        (folder / "served.log").open("wb") as log,
        subprocess.Popen(command, stderr=log, cwd=ROOT) as process,
    ):
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
                assert process.poll() is None, (folder / "served.log").read_text()
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
    assert "Traceback" not in (folder / "served.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("serving", [served, bundled])
def test_a_fuzz_by_the_document_finds_no_failure_of_ours(tmp_path: Path, serving: Serving) -> None:
    """Schemathesis sends what the document allows and what it forbids: every answer has a status and a form
    that the document names, none is a failure of ours, and what it forbids is refused. Some ask for an
    answer within a millisecond: that there is none is no failure of ours, while a whole deadline would be."""
    pytest.importorskip("schemathesis")
    (tmp_path / "schemathesis.toml").write_text(
        '[checks]\nnot_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "504"]\n'
    )
    secret = add_key(tmp_path / "keys.json", Key("fuzz"))
    with serving(tmp_path) as url:
        # where a key is needed the open document leaves out the models, which the fuzz is to ask too
        asked = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {secret}"})
        with urllib.request.urlopen(asked, timeout=5) as response:
            names = [row["id"] for row in orjson.loads(response.read())["data"]]
        document = tmp_path / "openapi.json"
        document.write_bytes(orjson.dumps(description(names)))
        command = [sys.executable, "-c", "from schemathesis.cli import schemathesis as run; run()", "run"]
        command += [str(document), "--url", url, "--checks", ",".join(CHECKS), "--max-examples", CASES]
        command += [
            "--header",
            f"Authorization: Bearer {secret}",
            "--seed",
            "0",
            "--no-color",
            "--generation-database",
            "none",
        ]
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=580, cwd=tmp_path, check=False
        )
    print(found.stdout[-2000:])  # how many cases: pytest -s shows it
    assert found.returncode == 0, found.stdout[-8000:]
    assert "Traceback" not in found.stdout
    late = [row for row in rows(tmp_path) if row["outcome"] == "deadline_exceeded"]
    assert all(row["latency_s"] < ServeConfig().deadline_s / 2 for row in late)
