"""From a configuration to a listening endpoint. The only file that imports the web server."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import uvicorn

from consort.config import Config
from consort.config_serve import ServeConfig
from consort.errors import ConfigError
from consort.gateway.app import create_app
from consort.gateway.keys import read_keys
from consort.gateway.opening import KEYS_FILE, is_loopback, open_service
from consort.gateway.service import Service


def serve(config: Config) -> None:
    """Serve until interrupted. ConfigError before anything listens."""
    check(config.serve)
    with closing(_port_of(config.serve)) as port:
        service = open_service(config)
        where = "https" if config.serve.tls_certificate else "http"
        alone = (
            "" if service.edges or config.serve.role == "cloud" else " alone: [[serve.edges]] names no edge"
        )
        print(f"serving {', '.join(lm.name for lm in service.models)}{alone}", file=sys.stderr)
        print(f"`consort` means {service.config.strategy}", file=sys.stderr)
        print(f"{where}://{config.serve.host}:{port.getsockname()[1]}/v1", file=sys.stderr)
        uvicorn.Server(server_config(service)).run([port])


def _port_of(config: ServeConfig) -> socket.socket:
    """The port, taken before models are loaded; who connects before they are finds nobody listening. Of a
    name with several addresses, the IPv4 one. ConfigError where it cannot be had."""
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"no address is called {config.host} ({error})", where="serve.host") from None
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    port = socket.socket(family, kind, protocol)
    try:
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # who has just ended there is no hindrance
        port.bind(address)
    except OSError as error:
        port.close()
        what = f"cannot serve at {config.host}:{config.port}: {error.strerror}"
        hint = "end what serves there, or name another: --port 8801, --host 127.0.0.1"
        raise ConfigError(what, where="serve.port", hint=hint) from None
    return port


@contextmanager
def running(service: Service) -> Iterator[str]:
    """The endpoint on a free port of this machine, in a thread; gives its base URL, up to /v1. The service is
    closed afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(server_config(service))
        thread = threading.Thread(target=server.run, args=([listening],), name="gateway", daemon=True)
        thread.start()  # who connects before it accepts waits in the socket's queue
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


def server_config(service: Service) -> uvicorn.Config:
    """uvicorn as lean as it gets: no access log, no headers of its own."""
    config = service.config
    return uvicorn.Config(
        create_app(service),  # type: ignore[arg-type]
        host=config.host,
        port=config.port,
        log_level="warning",
        access_log=False,
        ws="websockets-sansio" if service.pool is not None else "none",
        ws_per_message_deflate=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks where a client is
        timeout_graceful_shutdown=5,
        ssl_certfile=config.tls_certificate or None,
        ssl_keyfile=config.tls_key or None,
    )


def check(config: ServeConfig) -> None:
    """What must hold before anything listens."""
    if bool(config.tls_certificate) != bool(config.tls_key):
        raise ConfigError("tls_certificate and tls_key belong together", where="serve")
    if not is_loopback(config.host) and not read_keys(Path(config.state) / KEYS_FILE):
        raise ConfigError(
            f"{config.host} is open to other machines, which requires a key",
            where="serve.host",
            hint=f"consort keys add NAME --state {config.state}",
        )
