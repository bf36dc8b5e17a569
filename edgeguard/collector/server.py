"""HTTPS with mutual TLS in front of `ingest`. A device shows a certificate of our CA whose name is its id, and may only
bring its own segments. Bounded everywhere: connections, requests at work, body, time.

One process, one SQLite file: ingest runs in one worker thread, so that an fsync never stops the loop. With a queue in
the configuration POSTs go to workers (`work`) by way of `jetstream`, and this is only the front.
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
from typing import TYPE_CHECKING, Any

from aiohttp import web

from edgeguard.codec import cose
from edgeguard.collector import authority, metrics, store
from edgeguard.collector.alerter import Alerter
from edgeguard.collector.baselines import Baselines
from edgeguard.collector.config import Config
from edgeguard.collector.database import Database
from edgeguard.collector.enrolment import Enrolment
from edgeguard.collector.ingest import Device, Ingest, Verdict
from edgeguard.collector.jetstream import Away, Front
from edgeguard.collector.relayed import Relayed
from edgeguard.errors import DecodeError, SegmentRefused, SettingsError
from edgeguard.records import mqttclient, wire
from edgeguard.records.mqttwire import Answer

if TYPE_CHECKING:
    from edgeguard.collector.mqtt import Subscriber

CONNECTIONS_MAX = 512  # open at once, about 100 KB each with TLS; a device needs one for a second
AT_WORK_MAX = 32  # POSTs being read or stored at once, 256 KiB each; more are told to come back
WAITING_MAX = 256  # the same where a queue takes them: most only wait for a worker's word
IDLE_S = 15.0  # a connection without a request
BODY_S = 60.0  # to send 256 KiB: 4 KB/s, slower than any modem we know
HANDSHAKE_S = 20.0
RETRY_S = "5"

_NOT_NOW: tuple[type[Exception], ...] = (Away, *store.FAILURES)

Log = Callable[[str], None]


class Server:
    """Call `run`; it returns after SIGTERM or SIGINT."""

    def __init__(
        self,
        directory: str,
        host: str,
        port: int,
        log: Log,
        config: Config | None = None,
        enrol: tuple[str, int] | None = None,
    ) -> None:
        self._directory = directory
        self._config = config = config or Config()
        self._host, self._port = host, port
        self._log = log
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ingest")
        self._at_work = 0
        self._front = Front(config.queue, log) if config.queue else None
        self._ingest: Ingest | None = None
        self._db: Database | None = None
        self._enrol = enrol  # where devices without a certificate may ask for one
        self._enrolment: Enrolment | None = None
        if config.mqtt is not None and not mqttclient.available():
            raise SettingsError(f"[mqtt]: {mqttclient.MISSING}")
        self._relayed: Relayed | None = None
        self._subscriber: Subscriber | None = None
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
        application.router.add_post("/v1/renew", self._renew)
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
        if self._front is not None:
            self._front.start()
        told = await self._serve_metrics(runners)
        self._log(f"listening on {self._host}:{self.port}")
        if told:
            self._log(told)
        door = await self._door() if self._enrol is not None else None
        self._receive()
        ready()
        try:
            await stop.wait()
        finally:
            listener.close()
            if self._subscriber is not None:
                await loop.run_in_executor(None, self._subscriber.stop)
            for each in runners:
                await each.cleanup()
            if self._front is not None:
                await self._front.stop()
            if door is not None:
                door[1].close()
                await door[0].cleanup()
            await loop.run_in_executor(self._worker, self._close)
            await loop.run_in_executor(None, self._alerter.stop)
            self._worker.shutdown()

    def _receive(self) -> None:
        """From a broker, too, where the configuration says so."""
        if self._config.mqtt is None:
            return
        from edgeguard.collector.mqtt import Subscriber  # only where it is asked for

        assert self._relayed is not None
        relayed = self._relayed

        def answer(device: bytes, kind: str, payload: bytes) -> Answer:
            return self._worker.submit(relayed.answer, device, kind, payload).result()

        self._subscriber = Subscriber(self._config.mqtt, self._directory, answer, self._log)
        self._subscriber.start()

    async def _door(self) -> tuple[web.AppRunner, asyncio.Server]:
        """The port for enrolment."""
        from edgeguard.collector import enrolling  # only where it is asked for

        assert self._enrol is not None
        door = web.AppRunner(enrolling.Enrolling(self._directory, self._redeem, self._log).application())
        await door.setup()
        host, port = self._enrol
        tls = enrolling.context(self._directory)
        listener = await asyncio.get_running_loop().create_server(
            self._factory(door), host, port, ssl=tls, ssl_handshake_timeout=HANDSHAKE_S, backlog=16
        )
        self._log(f"enrolling on {host}:{listener.sockets[0].getsockname()[1]}")
        return door, listener

    async def _redeem(self, token: str, public: bytes) -> Device:
        assert self._enrolment is not None
        assert self._ingest is not None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._enrolment.redeem, token, public, self._ingest)

    async def _renew(self, request: web.Request) -> web.Response:
        """A new certificate for the key of the one that is shown."""
        shown: Any = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
        identity = _identity(request)
        loop = asyncio.get_running_loop()
        try:
            device = await loop.run_in_executor(self._worker, self._known, identity, _issued(request))
            certificate = authority.renewed(self._directory, device.id.hex(), shown.getpeercert(True))
        except (LookupError, DecodeError) as error:
            self._log(f"renewal refused: {error}")
            return _words(403, "no")
        self._log(f"{device.name}: certificate renewed")
        return web.Response(body=certificate, content_type="application/x-pem-file")

    def _socket(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, self._port), family=family, backlog=128)
        self.port = listener.getsockname()[1]
        return listener

    def _open(self) -> None:
        seed = cose.load_seed([os.path.join(self._directory, "collector.key")])
        self._db = store.open_(self._directory, self._config)
        self._enrolment = Enrolment(self._directory, _now, threads=True)
        baselines = Baselines(os.path.join(self._directory, "baselines"))
        self._ingest = Ingest(self._db, seed, _now, baselines)
        self._relayed = Relayed(self._directory, self._ingest, self._enrolment, self._log, self._brought)

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
        if self._enrolment is not None:
            self._enrolment.close()

    def _factory(self, runner: web.AppRunner) -> Callable[[], asyncio.BaseProtocol]:
        """A protocol for each connection; beyond the bound one that hangs up."""

        def protocol() -> asyncio.BaseProtocol:
            server = runner.server
            assert server is not None
            return server() if len(server.connections) < CONNECTIONS_MAX else _Full()

        return protocol

    async def _serve_metrics(self, runners: list[web.AppRunner]) -> str:
        """Plain HTTP for Prometheus, on an address of its own, where the configuration says so. Where, or ""."""
        if self._config.metrics is None:
            return ""
        application = web.Application(client_max_size=1024)
        application.router.add_get("/metrics", self._metrics)
        runners.append(web.AppRunner(application, access_log=None))
        await runners[-1].setup()
        host, port = self._config.metrics
        await web.TCPSite(runners[-1], host, port).start()
        return f"metrics on {host}:{port}"

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
        if self._at_work >= (AT_WORK_MAX if self._front is None else WAITING_MAX):
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
        if self._front is not None:
            return await self._by_queue(self._front, identity, _issued(request), body)
        loop = asyncio.get_running_loop()
        try:
            issued = _issued(request)
            verdicts, receipt, name = await loop.run_in_executor(self._worker, self._take, identity, issued, body)
        except LookupError as error:
            self._log(str(error.args[0]))
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

    async def _by_queue(self, front: Front, identity: str, issued: int, body: bytes) -> web.Response:
        """A worker verifies and stores it, and its receipt is passed on. Only its word is one, never the broker's."""
        loop = asyncio.get_running_loop()
        try:
            if await loop.run_in_executor(self._worker, self._revoked, bytes.fromhex(identity), issued):
                self._log(f"{identity} shows a certificate that was revoked")
                return _words(403, "unknown device")
            answer = await front.post(identity, body)
        except ValueError:
            return _words(403, "unknown device")
        except _NOT_NOW as error:
            self._log(f"{identity}: {error}")
            return _words(503, "cannot store now", {"Retry-After": RETRY_S})
        if answer.status == 200:
            self._alerter.ring()
            return web.Response(body=answer.body, content_type="application/cose")
        said = answer.body.decode("ascii", "replace").strip()
        return _words(answer.status, said, {"Retry-After": "60"} if answer.status == 503 else None)

    def _revoked(self, device: bytes, issued: int) -> bool:
        assert self._enrolment is not None
        return self._enrolment.revoked(device, issued)

    def _known(self, identity: str, issued: int) -> Device:
        """In the worker thread. LookupError: nobody we know, or nobody any more."""
        assert self._ingest is not None
        assert self._enrolment is not None
        try:
            device = self._ingest.device(bytes.fromhex(identity))
        except ValueError:
            device = None
        if device is None:
            self._ingest.unknown_device(identity)
            raise LookupError(f"unknown device {identity}")
        if self._enrolment.revoked(device.id, issued):
            self._ingest.unknown_device(f"{identity} revoked")
            raise LookupError(f"{device.name} shows a certificate that was revoked")
        return device

    def _take(self, identity: str, issued: int, body: bytes) -> tuple[list[Verdict], bytes, str]:
        """In the worker thread. LookupError: nobody we know."""
        assert self._ingest is not None
        device = self._known(identity, issued)
        verdicts, receipt = self._ingest.take(body, device)
        return verdicts, receipt, device.name

    def _brought(self, name: str, verdicts: list[Verdict]) -> None:
        self._alerter.ring()
        self._tell(name, verdicts)

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
    tls.num_tickets = 0  # no device can keep one: two, each with its certificate inside, were a third of a handshake
    tls.load_verify_locations(os.path.join(directory, "ca.pem"))
    tls.load_cert_chain(os.path.join(directory, "server.pem"), os.path.join(directory, "server.key"))
    # No tickets: each holds the device's certificate (two of them are 2 kB, half of a quiet hour), and a device, whose
    # uplink is a new process each time, could not use one.
    tls.num_tickets = 0
    return tls


def _identity(request: web.Request) -> str:
    """The device id in the certificate that TLS has verified; "" if it has none."""
    certificate: Any = request.transport.get_extra_info("peercert") if request.transport is not None else None
    for part in (certificate or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return ""


def _issued(request: web.Request) -> int:
    """When the certificate that TLS has verified was made, in ms; 0 if it does not say."""
    certificate: Any = request.transport.get_extra_info("peercert") if request.transport is not None else None
    begins = (certificate or {}).get("notBefore")
    return (ssl.cert_time_to_seconds(begins) + int(authority.BACKDATED.total_seconds())) * 1000 if begins else 0


def _now() -> int:
    return time.time_ns() // 1_000_000


def _words(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=text + "\n", headers=headers)
