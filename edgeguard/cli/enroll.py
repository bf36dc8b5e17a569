"""`edgeguard enroll URL --token T --ca-fingerprint F`: a certificate for this device, by a token that is good once.

The collector is known by the fingerprint of its CA, which came with the token and not over this network. The device
proves with its own key who it is; its TLS key is made here and never leaves. Without the daemon; needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import grp
import os
import re
import sys
import tempfile
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from edgeguard.cli.console import Console
from edgeguard.cli.text import escape
from edgeguard.errors import ControlError, DecodeError, EdgeGuardError

if TYPE_CHECKING:
    from edgeguard.settings import Second, Settings, Uplink

TOKEN_MAX = 64  # letters
GROUP = "edgeguard-uplink"
ENROLL_PATH, AUTHORITY_PATH = "/v1/enroll", "/v1/ca"
_FIELDS = 6


class EnrolmentFailed(EdgeGuardError):
    """The collector is another one, or says no."""


class Answer(NamedTuple):
    name: str
    certificate: bytes
    collector_key: bytes
    operator_key: bytes  # empty: it has none


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="https://HOST:PORT where the collector enrols")
    parser.add_argument("--token", required=True, metavar="T", help="from edgeguard-collector token; -: from stdin")
    parser.add_argument("--ca-fingerprint", required=True, metavar="SHA256", help="of the collector's CA certificate")
    parser.add_argument("--second", action="store_true", help="as the second collector")


def run(given: argparse.Namespace, console: Console) -> int:
    fingerprint = re.sub(r"[:\s]", "", given.ca_fingerprint).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
        raise ControlError("InvalidParameter", "a fingerprint is 64 hex digits (SHA-256)")
    said = sys.stdin.readline(TOKEN_MAX + 1).strip() if given.token == "-" else given.token  # noqa: S105 - "-" is none
    if not 0 < len(said) <= TOKEN_MAX:
        raise ControlError("InvalidParameter", "a token is letters and digits in groups")
    settings = console.settings
    place = settings.uplink.second if given.second else settings.uplink
    answer = _enrol(settings, place, given.url, said, fingerprint)
    if console.form != "text":
        console.json({"v": 1, "name": answer.name, "certificate": place.certificate})
        return 0
    console.text(f"Enrolled as {escape(answer.name)}. Certificate and keys are in {os.path.dirname(place.ca)}.")
    if not place.url:
        section = "uplink.second" if given.second else "uplink"
        console.text(f'Next, in agent.toml: [{section}] url = "https://HOST:PORT" where it receives, then:')
        console.text("  systemctl restart edgeguard")
    return 0


def _enrol(settings: Settings, place: Uplink | Second, url: str, token: str, fingerprint: str) -> Answer:
    from edgeguard import identity
    from edgeguard.codec import cbor, certificates, cose
    from edgeguard.records import link

    key_of_device = identity.load(settings)
    public = key_of_device.public
    directory = os.path.dirname(place.ca)
    os.makedirs(directory, mode=0o751, exist_ok=True)
    authority = _authority(url, fingerprint)
    with tempfile.TemporaryDirectory(prefix=".enrol-", dir=directory) as beside:
        _write(os.path.join(beside, "ca.pem"), authority, 0o600)
        line = link.Link(link.Target(url, os.path.join(beside, "ca.pem"), "", ""))
        key, csr = certificates.request(cose.device_id(public).hex())
        request = cose.sign1(cbor.encode([1, public, token, csr]), key_of_device, cose.ENROL_AAD)
        try:
            reply = line.post(request, ENROLL_PATH)
        finally:
            line.close()
        if reply.status != 200:
            raise EnrolmentFailed(f"not enrolled: {link.refusal(reply)}; the collector's log says why")
        answer = parse(reply.body)
        for path, data, mode in (
            (place.key, key, 0o640),
            (place.certificate, answer.certificate, 0o644),
            (place.ca, authority, 0o644),
            (place.collector_key, answer.collector_key, 0o644),
            (settings.uplink.export_key, answer.operator_key, 0o644),
        ):
            if data:
                _put(beside, path, data, mode)
    return answer


def _authority(url: str, fingerprint: str) -> bytes:
    """The CA's certificate from whoever answers, if it is the one with this fingerprint."""
    from edgeguard.codec import certificates
    from edgeguard.records import link

    line = link.unverified(url)
    try:
        reply = line.get(AUTHORITY_PATH)
    finally:
        line.close()
    if reply.status != 200:
        raise EnrolmentFailed(f"{url} does not enrol: {link.refusal(reply)}")
    found = sha256(certificates.der(reply.body)).hexdigest()
    if found != fingerprint:
        raise EnrolmentFailed(f"{url} is another collector: the fingerprint of its CA is {found}")
    return reply.body


def parse(body: bytes) -> Answer:
    """What the collector gives a device. Raises DecodeError."""
    from edgeguard.codec import cbor, certificates

    parts = cbor.decode(body, depth=2)
    if not isinstance(parts, list) or len(parts) < _FIELDS or parts[0] != 1:
        raise DecodeError("enrolment: not an array of six of version 1")
    _, name, certificate, _, collector_key, operator_key = parts[:_FIELDS]
    if not isinstance(name, str) or not all(isinstance(part, bytes) for part in parts[2:_FIELDS]):
        raise DecodeError("enrolment: name, certificate or keys")
    certificates.validity(certificates.der(certificate))
    for text in (collector_key, operator_key or collector_key):
        if not re.fullmatch(rb"[0-9a-f]{64}\n?", text):
            raise DecodeError("enrolment: a public key is 64 hex digits")
    return Answer(name, certificate, collector_key, operator_key)


def _put(beside: str, path: str, data: bytes, mode: int) -> None:
    """As a whole, readable for the uplink's user."""
    temporary = os.path.join(beside, os.path.basename(path) + ".new")
    _write(temporary, data, 0o600)
    with contextlib.suppress(KeyError, PermissionError):  # a tree of one's own has no such group
        os.chown(temporary, -1, grp.getgrnam(GROUP).gr_gid)
    os.chmod(temporary, mode)
    os.makedirs(os.path.dirname(path), mode=0o751, exist_ok=True)
    os.replace(temporary, path)


def _write(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
