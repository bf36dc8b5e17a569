"""HTTPS with mutual TLS in front of `ingest`. A device shows a certificate of our CA whose name is its id, and may only
bring its own segments. Bounded everywhere: connections, requests at work, body, time.

One process, one SQLite file: ingest runs in one worker thread, so that an fsync never stops the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from edgeguard.codec import cose
from edgeguard.collector import metrics, store
from edgeguard.collector.alerter import Alerter
from edgeguard.collector.baselines import Baselines
from edgeguard.collector.config import Config
from edgeguard.collector.database import Database
from edgeguard.collector.ingest import Ingest, Verdict
from edgeguard.errors import SegmentRefused
from edgeguard.records import wire

CONNECTIONS_MAX = 512  # open at once, about 100 KB each with TLS; a device needs one for a second
AT_WORK_MAX = 32  # POSTs being read or stored at once, 256 KiB each; more are told to come back
IDLE_S = 15.0  # a connection without a request
BODY_S = 60.0  # to send 256 KiB: 4 KB/s, slower than any modem we know
HANDSHAKE_S = 20.0
RETRY_S = "5"

Log = Callable[[str], None]


class Server:
    """Call `run`; it returns after SIGTERM or SIGINT."""

    def __init__(self, directory: str, host: str, port: int, log: Log, config: Config | None = None) -> None:
        self._directory = directory
        self._config = config = config or Config()
        self._host, self._port = host, port
        self._log = log
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ingest")
        self._at_work = 0
        self._ingest: Ingest | None = None
        self._db: Database | None = None
        self._alerter = Alerter(
            lambda: store.open_(directory, config), config, log, lambda: secrets.token_hex(16), _now
        )
        self.port = 0  # the one that was bound, for port 0

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._worker, self._open)
        application = web.Application(client_max_size=wire.SEGMENT_MAX)
        application.router.add_post("/v1/segments", self._segments)
        application.router.add_get("/v1/health", self._health)
        runner = web.AppRunner(application, keepalive_timeout=IDLE_S, access_log=None)
        runners = [runner]
        await runner.setup()
        listener = await loop.create_server(
            self._factory(runner),
            sock=self._socket(),
            ssl=context(self._directory),
            ssl_handshake_timeout=HANDSHAKE_S,
        )
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self._alerter.start()
        self._log(f"listening on {self._host}:{self.port}")
        await self._serve_metrics(runners)
        ready()
        try:
            await stop.wait()
        finally:
            listener.close()
            for each in runners:
                await each.cleanup()
            await loop.run_in_executor(self._worker, self._close)
            await loop.run_in_executor(None, self._alerter.stop)
            self._worker.shutdown()

    def _socket(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, self._port), family=family, backlog=128)
        self.port = listener.getsockname()[1]
        return listener

    def _open(self) -> None:
        seed = cose.load_seed([os.path.join(self._directory, "collector.key")])
        self._db = store.open_(self._directory, self._config)
        baselines = Baselines(os.path.join(self._directory, "baselines"))
        self._ingest = Ingest(self._db, seed, _now, baselines)

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()

    def _factory(self, runner: web.AppRunner) -> Callable[[], asyncio.BaseProtocol]:
        """A protocol for each connection; beyond the bound one that hangs up."""

        def protocol() -> asyncio.BaseProtocol:
            server = runner.server
            assert server is not None
            return server() if len(server.connections) < CONNECTIONS_MAX else _Full()

        return protocol

    async def _serve_metrics(self, runners: list[web.AppRunner]) -> None:
        """Plain HTTP for Prometheus, on an address of its own, where the configuration says so."""
        if self._config.metrics is None:
            return
        application = web.Application(client_max_size=1024)
        application.router.add_get("/metrics", self._metrics)
        runners.append(web.AppRunner(application, access_log=None))
        await runners[-1].setup()
        host, port = self._config.metrics
        await web.TCPSite(runners[-1], host, port).start()
        self._log(f"metrics on {host}:{port}")

    async def _metrics(self, _request: web.Request) -> web.Response:
        try:
            page = await asyncio.get_running_loop().run_in_executor(None, self._figures)
        except store.FAILURES as error:
            self._log(f"metrics: database: {error}")
            return _words(503, "cannot read now")
        return web.Response(body=page.encode(), headers={"Content-Type": metrics.CONTENT_TYPE})

    def _figures(self) -> str:
        with contextlib.closing(store.open_(self._directory, self._config)) as db:
            return metrics.text(db, _now())

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(text="OK\n")

    async def _segments(self, request: web.Request) -> web.Response:
        if self._at_work >= AT_WORK_MAX:
            return _words(503, "busy", {"Retry-After": RETRY_S})
        self._at_work += 1
        try:
            return await self._answer(request)
        finally:
            self._at_work -= 1

    async def _answer(self, request: web.Request) -> web.Response:
        identity = _identity(request)
        try:
            body = await asyncio.wait_for(request.read(), BODY_S)
        except asyncio.TimeoutError:  # noqa: UP041 - the same as TimeoutError, and said so since 3.11
            return _words(408, "too slow")
        loop = asyncio.get_running_loop()
        try:
            verdicts, receipt, name = await loop.run_in_executor(self._worker, self._take, identity, body)
        except LookupError:
            self._log(f"unknown device {identity}")
            return _words(403, "unknown device")
        except SegmentRefused as error:
            self._log(f"{identity}: {error}")
            return _words(400, "not a sequence of segments")
        except store.FAILURES as error:
            # Full disk, I/O error: nothing was committed, so nothing is confirmed and the device keeps it.
            self._log(f"database: {error}")
            return _words(503, "cannot store now", {"Retry-After": "60"})
        self._alerter.ring()
        self._tell(name, verdicts)
        return web.Response(body=receipt, content_type="application/cose")

    def _take(self, identity: str, body: bytes) -> tuple[list[Verdict], bytes, str]:
        """In the worker thread. LookupError: nobody we know."""
        assert self._ingest is not None
        try:
            device = self._ingest.device(bytes.fromhex(identity))
        except ValueError:
            device = None
        if device is None:
            self._ingest.unknown_device(identity)
            raise LookupError(identity)
        verdicts, receipt = self._ingest.take(body, device)
        return verdicts, receipt, device.name

    def _tell(self, name: str, verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            if not verdict.taken:
                self._log(f"{name}: segment {verdict.stream}-{verdict.sequence}: {verdict.name} {verdict.detail}")


class _Full(asyncio.Protocol):
    """One connection too many: end it at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def context(directory: str) -> ssl.SSLContext:
    """TLS 1.2 or newer, and nobody without a certificate of our CA."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(os.path.join(directory, "ca.pem"))
    tls.load_cert_chain(os.path.join(directory, "server.pem"), os.path.join(directory, "server.key"))
    return tls


def _identity(request: web.Request) -> str:
    """The device id in the certificate that TLS has verified; "" if it has none."""
    certificate: Any = request.transport.get_extra_info("peercert") if request.transport is not None else None
    for part in (certificate or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return ""


def _now() -> int:
    return time.time_ns() // 1_000_000


def _words(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=text + "\n", headers=headers)
