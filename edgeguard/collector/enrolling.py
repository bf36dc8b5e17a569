"""Enrolment over HTTPS: the one door of the collector that is open to who has no certificate yet, on a port of its own.

    GET  /v1/ca       the CA's certificate; whoever asks compares it with a fingerprint that came another way
    POST /v1/enroll   COSE_Sign1 by the device's key over [1, public key, token, certificate request]

Bounded in bytes, in time and in attempts; what went wrong is in the log, and whoever asked is told only "no". Renewal
is in `server`, behind the certificate that is renewed.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from edgeguard.codec import cbor
from edgeguard.collector import authority
from edgeguard.collector.enrolment import BODY_MAX, EnrolmentRefused, parse
from edgeguard.collector.ingest import Device
from edgeguard.errors import DecodeError, SignatureError

BODY_S = 20.0
WINDOW_S = 60.0
ATTEMPTS_MAX = 60  # in a window, of all; a signature and a database look-up each
ATTEMPTS_EACH = 6  # of one address

Redeem = Callable[[str, bytes], Awaitable[Device]]


class Attempts:
    """How many there were in this window, of all and of each address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._count: dict[str, int] = {}

    def allow(self, address: str) -> bool:
        now = self._clock()
        if now - self._began > WINDOW_S:
            self._began = now
            self._count.clear()
        made = self._count.get(address, 0)
        if made >= ATTEMPTS_EACH or sum(self._count.values()) >= ATTEMPTS_MAX:
            return False  # and does not count: nobody uses up what is for all
        self._count[address] = made + 1
        return True


class Enrolling:
    """The application. `redeem` gives the device for a token and a key, or raises EnrolmentRefused."""

    def __init__(self, directory: str, redeem: Redeem, log: Callable[[str], None]) -> None:
        self._directory = directory
        self._redeem = redeem
        self._log = log
        self._attempts = Attempts()

    def application(self) -> web.Application:
        application = web.Application(client_max_size=BODY_MAX)
        application.router.add_get("/v1/ca", self._authority)
        application.router.add_post("/v1/enroll", self._enroll)
        return application

    async def _authority(self, _request: web.Request) -> web.Response:
        return web.Response(body=_file(self._directory, "ca.pem"), content_type="application/x-pem-file")

    async def _enroll(self, request: web.Request) -> web.Response:
        address = request.remote or ""
        if not self._attempts.allow(address):
            return web.Response(status=429, text="later\n", headers={"Retry-After": str(int(WINDOW_S))})
        try:
            body = await asyncio.wait_for(request.read(), BODY_S)
        except asyncio.TimeoutError:  # noqa: UP041 - the same as TimeoutError, and said so since 3.11
            return web.Response(status=408, text="too slow\n")
        try:
            asked = parse(body)
            key = authority.requested(asked.csr)  # before the token: a request that cannot be met leaves it good
            device = await self._redeem(asked.token, asked.public)
        except (DecodeError, SignatureError, EnrolmentRefused) as error:
            self._log(f"enrolment from {address} refused: {error}")
            return web.Response(status=403, text="no\n")
        certificate = authority.certify(self._directory, device.id.hex(), key)
        self._log(f"{device.name} enrolled from {address}: {device.id.hex()}")
        operator = _file(self._directory, "operator.pub")
        answer = [1, device.name, certificate, *(_file(self._directory, name) for name in ("ca.pem", "collector.pub"))]
        return web.Response(body=cbor.encode([*answer, operator]), content_type="application/cbor")


def context(directory: str) -> ssl.SSLContext:
    """The collector's certificate, nothing asked in return."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.num_tickets = 0
    tls.load_cert_chain(os.path.join(directory, "server.pem"), os.path.join(directory, "server.key"))
    return tls


def _file(directory: str, name: str) -> bytes:
    """A small file of the collector; nothing where there is none."""
    try:
        with open(os.path.join(directory, name), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
