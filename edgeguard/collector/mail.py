"""A message as mail: plain text made of the same body that a webhook gets, sent by SMTP with STARTTLS unless told
otherwise. A server that does not offer TLS where it was asked for gets nothing.

What a device wrote is escaped before it stands in a header or a line. The Message-ID is the message's id.
"""

from __future__ import annotations

import contextlib
import json
import smtplib
import socket
import ssl
from collections.abc import Mapping
from email.message import EmailMessage
from email.utils import formatdate
from typing import Any

from edgeguard.collector.config import Mail
from edgeguard.collector.deadline import Deadline, Undelivered
from edgeguard.collector.events import printable

TOTAL_S = 45.0  # the whole exchange: greylisting servers take their time with a greeting
STEP_S = 20.0
SUBJECT_MAX = 150  # letters
LINE_MAX = 900  # letters; SMTP allows 998


def send(target: Mail, identity: str, body: str, now: int) -> str:
    """Hand it to the server. Returns a remark: who was refused while others were not. Raises Undelivered."""
    mail = compose(target, identity, json.loads(body), now)
    try:
        with Deadline(TOTAL_S) as deadline:
            server = _connect(target, deadline)
            try:
                if target.user:
                    server.login(target.user, target.password)
                refused = server.send_message(mail, target.sender, list(target.to))
                with contextlib.suppress(smtplib.SMTPException, OSError):
                    server.quit()  # a courtesy: it is delivered already
            finally:
                server.close()
    except smtplib.SMTPResponseException as error:
        said = error.smtp_error.decode("utf-8", "replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
        raise Undelivered(f"{error.smtp_code} {said}") from error
    except (OSError, smtplib.SMTPException, ValueError) as error:
        raise Undelivered(f"{type(error).__name__}: {error}") from error
    return f"refused: {', '.join(sorted(refused))}" if refused else ""


def _connect(target: Mail, deadline: Deadline) -> smtplib.SMTP:
    context = ssl.create_default_context(cafile=target.ca or None)
    server = _Guarded(target, deadline, context)
    try:
        if target.tls == "starttls":
            server.starttls(context=context)  # raises where it is not offered
            deadline.guards(server.sock)
    except BaseException:
        server.close()
        raise
    return server


class _Guarded(smtplib.SMTP):
    """From the first byte on: also the greeting may take for ever."""

    def __init__(self, target: Mail, deadline: Deadline, context: ssl.SSLContext) -> None:
        self._deadline = deadline
        self._implicit = context if target.tls == "implicit" else None
        super().__init__(target.server, target.port, timeout=STEP_S)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        connection = socket.create_connection((host, port), timeout)
        if self._implicit:
            connection = self._implicit.wrap_socket(connection, server_hostname=host)
        self._deadline.guards(connection)
        return connection


def compose(target: Mail, identity: str, message: Mapping[str, Any], now: int) -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"] = printable(subject(message))[:SUBJECT_MAX]
    mail["From"] = target.sender
    mail["To"] = ", ".join(target.to)
    mail["Date"] = formatdate(now / 1000)
    mail["Message-ID"] = f"<{identity}@{target.sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-EdgeGuard-Message"] = identity
    mail.set_content("\n".join(printable(line)[:LINE_MAX] for line in lines(message)) + "\n", cte="quoted-printable")
    return mail


def subject(message: Mapping[str, Any]) -> str:
    """The worst of it, and how many there are."""
    items = message["items"]
    first = items[0]
    what = " ".join(str(first[part]) for part in ("name", "code", "subject") if first[part])
    total = len(items) + message["more"]
    others = f" and {total - 1} more" if total > 1 else ""
    return f"[EdgeGuard] {_head(first)}: {what}{others}"


def lines(message: Mapping[str, Any]) -> list[str]:
    counts = ", ".join(f"{number} {name}" for name, number in message["counts"].items())
    said = [f"{counts}, {message['time']}", ""]
    for item in message["items"]:
        what = " ".join(str(item[part]) for part in ("name", "code", "subject") if item[part])
        said.append(f"{_head(item)}: {what}")
        said.append(f"    {item['time']}{'  ' + item['detail'] if item['detail'] else ''}")
    if message["more"]:
        said += ["", f"and {message['more']} more: edgeguard-collector alerts DIR"]
    return said


def _head(item: Mapping[str, Any]) -> str:
    """ "critical" for what is open now, the event beside it for what is not just that."""
    return str(item["severity"]) if item["event"] == "opened" else f"{item['severity']}, {_WORDS[item['event']]}"


_WORDS = {
    "opened": "",
    "worse": "worse than before",
    "passed": "opened and over again",
    "repeated": "still open",
    "resolved": "resolved",
    "test": "test",
}
