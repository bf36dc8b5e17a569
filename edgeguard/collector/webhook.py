"""A message to a URL: one JSON POST, signed as Standard Webhooks does (webhook-id, -timestamp, -signature).

The id stays the same however often a message is sent, so a receiver can leave out what it has. Redirects are not
followed, the answer is not believed beyond its status, and nothing here takes longer than TOTAL_S.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import ssl
from urllib.parse import urlsplit

from edgeguard import __version__
from edgeguard.collector.config import Webhook
from edgeguard.collector.deadline import Deadline, Undelivered

TOTAL_S = 20.0  # the whole exchange
STEP_S = 10.0  # connecting, and each silence in between
RETRY_AFTER_MAX_S = 3600


def send(target: Webhook, identity: str, body: str, now: int) -> str:
    """POST it. Returns a remark, "" here. Raises Undelivered."""
    parts = urlsplit(target.url)
    host = parts.hostname or ""
    connection = (
        http.client.HTTPSConnection(host, parts.port, timeout=STEP_S, context=_tls(target.ca))
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, parts.port, timeout=STEP_S)
    )
    data = body.encode()
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        with Deadline(TOTAL_S) as deadline:
            connection.connect()
            deadline.guards(connection.sock)
            connection.request("POST", path, data, headers(target.secret, identity, data, now))
            answer = connection.getresponse()
            status, after = answer.status, answer.getheader("Retry-After", "")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Undelivered(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    if not 200 <= status < 300:
        wait = min(int(after), RETRY_AFTER_MAX_S) * 1000 if after.isascii() and after.isdigit() else None
        raise Undelivered(f"answered {status}", wait)
    return ""


def headers(secret: bytes, identity: str, body: bytes, now: int) -> dict[str, str]:
    """Of one attempt, at `now` in milliseconds."""
    known = {
        "Content-Type": "application/json",
        "User-Agent": f"edgeguard-collector/{__version__}",
        "webhook-id": identity,
        "webhook-timestamp": str(now // 1000),
    }
    if secret:
        known["webhook-signature"] = signature(secret, identity, now // 1000, body)
    return known


def signature(secret: bytes, identity: str, seconds: int, body: bytes) -> str:
    """`v1,` and the base64 of HMAC-SHA256 over id, time and body, joined by dots."""
    signed = b".".join((identity.encode(), str(seconds).encode(), body))
    return "v1," + base64.b64encode(hmac.digest(_key(secret), signed, hashlib.sha256)).decode()


def _key(secret: bytes) -> bytes:
    """The bytes themselves, or what follows whsec_ in base64."""
    if secret.startswith(b"whsec_"):
        try:
            return base64.b64decode(secret[6:], validate=True)
        except binascii.Error:
            return secret
    return secret


def _tls(ca: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca or None)
