"""edgeguard-collector.toml: whom to tell of what, when a device counts as silent, where figures are, which database.

Every key is optional, every unknown one is an error: a target that is silently not told is worse than a collector that
says why it does not start. Secrets stand in files of their own, named here, which only their owner may read.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from edgeguard.errors import SettingsError
from edgeguard.model import Severity

NAME = "edgeguard-collector.toml"
SIZE_MAX = 64 * 1024  # bytes; a real one has less than two
SECRET_MAX = 4096  # bytes of a secret's file
TARGETS_MAX = 16  # each has a thread of its own while it is being told
RECIPIENTS_MAX = 50
DAY_S = 86_400
MINUTES = 24 * 60
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")
_TARGET = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_ADDRESS = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,255}")
SEVERITIES = {severity.name.lower(): severity for severity in Severity}


class Webhook(NamedTuple):
    """A URL that takes a JSON POST, signed as Standard Webhooks does where there is a secret."""

    name: str
    url: str
    secret: bytes
    ca: str  # PEM file; "": what this machine trusts
    least: Severity


class Mail(NamedTuple):
    """A mail server and who gets mail."""

    name: str
    server: str
    port: int
    tls: str  # "starttls", "implicit" or "none"
    user: str
    password: str
    sender: str
    to: tuple[str, ...]
    ca: str
    least: Severity


Target = Webhook | Mail


class Alerts(NamedTuple):
    least: Severity = Severity.HIGH
    group_s: int = 60  # what is not critical waits so long for company after the last message
    repeat_s: int = DAY_S  # what is still open is said again; 0: never
    quiet: tuple[tuple[int, int], ...] = ()  # minutes of the day, from and to; the second may be after midnight
    zone: str = ""  # of the quiet hours; "": this machine's
    breaks: Severity = Severity.CRITICAL  # this and worse is said in quiet hours too
    incidents: bool = True  # what is wrong with a device's chain
    give_up_s: int = 3 * DAY_S
    targets: tuple[Target, ...] = ()


class Silence(NamedTuple):
    """When a device that does not talk is an alert. beats 0: never."""

    beats: int = 3
    least_s: int = 3600  # taken for a device's interval where it promised none and talks more often
    severity: Severity = Severity.HIGH


class Mqtt(NamedTuple):
    """A broker by which devices send. Files "": those of the collector's directory."""

    url: str
    ca: str
    certificate: str
    key: str
    share: str  # several workers on one database share what comes under this name; "": this one gets all


class Queue(NamedTuple):
    """A NATS server with JetStream between `serve` and `work`. Files "": none."""

    url: str
    user: str = ""
    password: str = ""
    ca: str = ""  # PEM file; "": what this machine trusts
    certificate: str = ""  # PEM file, with `key`: for a server that asks for one
    key: str = ""
    wait_s: int = 20  # for a worker's word; then the device is told to come again
    max_mib: int = 1024  # of what waits, on the broker's disk
    max_age_s: int = 300  # what waited longer is dropped: its device has long been told to come again
    replicas: int = 1


class Config(NamedTuple):
    alerts: Alerts = Alerts()
    silence: Silence = Silence()
    metrics: tuple[str, int] | None = None  # where Prometheus may ask
    queue: Queue | None = None
    database: str = ""  # postgresql://...; "": SQLite in the collector's directory
    mqtt: Mqtt | None = None


def load(directory: str, path: str | None = None) -> Config:
    """`path`, or the file in the collector's directory if there is one. Raises SettingsError."""
    file = path or os.path.join(directory, NAME)
    try:
        with open(file, "rb") as stream:
            data = stream.read(SIZE_MAX + 1)
    except FileNotFoundError:
        if path is None:
            return Config()
        raise SettingsError(f"{file}: not there") from None
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from error
    if len(data) > SIZE_MAX:
        raise SettingsError(f"{file}: larger than {SIZE_MAX} bytes")
    return parse(data, file)


def parse(data: bytes, path: str) -> Config:
    """The configuration in a TOML text. Files that it names are looked for beside `path`, and secrets are read."""
    try:
        document = tomllib.loads(data.decode())
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from error
    except RecursionError as error:
        raise SettingsError(f"{path}: nested too deeply") from error
    top = _Table(document, path, "")
    alerts = _alerts(top.table("alerts"))
    silence = _silence(top.table("silence"))
    listen = top.table("metrics").text("listen", "", _listen)
    store = top.table("store")
    database = store.text("url", "", _database)
    password = store.secret("password_file")
    if password and not database:
        raise SettingsError(f"{path}: store.password_file: there is no url that it could be for")
    mqtt = _mqtt(top.table("mqtt")) if "mqtt" in document else None
    top.known("mqtt")
    queue = _queue(top.table("queue"))
    if queue and not database:
        raise SettingsError(f"{path}: queue.url: several workers need PostgreSQL: store.url")
    top.done()
    listening = _listen(listen) if listen else None
    return Config(alerts, silence, listening, queue, _with_password(database, password), mqtt)


def _alerts(table: _Table) -> Alerts:
    least = table.severity("min_severity", Severity.HIGH)
    targets: list[Target] = [_webhook(item, least) for item in table.tables("webhook")]
    targets += [_mail(item, least) for item in table.tables("mail")]
    names = [target.name for target in targets]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled:
        raise table.wrong("webhook and mail", f"two are called {doubled!r}")
    if len(targets) > TARGETS_MAX:
        raise table.wrong("webhook and mail", f"{len(targets)} are more than {TARGETS_MAX}")
    zone = table.text("zone", "", _zone)
    alerts = Alerts(
        least=least,
        group_s=table.number("group_s", 60, 1, DAY_S),
        repeat_s=table.number("repeat_s", DAY_S, 0, 365 * DAY_S),
        quiet=tuple(_hours(text) for text in table.texts("quiet", (), _hours, 8)),
        zone=zone,
        breaks=table.severity("quiet_break", Severity.CRITICAL),
        incidents=table.flag("incidents", default=True),
        give_up_s=table.number("give_up_s", 3 * DAY_S, 60, 365 * DAY_S),
        targets=tuple(targets),
    )
    table.done()
    return alerts


def _silence(table: _Table) -> Silence:
    silence = Silence(
        table.number("beats", 3, 0, 100),
        table.number("min_interval_s", 3600, 10, 30 * DAY_S),
        table.severity("severity", Severity.HIGH),
    )
    table.done()
    return silence


def _mqtt(table: _Table) -> Mqtt:
    mqtt = Mqtt(
        table.text("url", None, _broker),
        table.file("ca_file"),
        table.file("certificate_file"),
        table.file("key_file"),
        table.text("share", "", _target_name),
    )
    if bool(mqtt.certificate) != bool(mqtt.key):
        raise table.wrong("certificate_file", "certificate_file and key_file go together")
    table.done()
    return mqtt


def _queue(table: _Table) -> Queue | None:
    queue = Queue(
        url=table.text("url", "", _nats),
        user=table.text("user", ""),
        password=table.secret("password_file").decode("utf-8", "replace"),
        ca=table.file("ca_file"),
        certificate=table.file("certificate_file"),
        key=table.private("key_file"),
        wait_s=table.number("wait_s", 20, 1, 50),  # a device waits a minute for its answer
        max_mib=table.number("max_mib", 1024, 1, 1 << 20),
        max_age_s=table.number("max_age_s", 300, 10, DAY_S),
        replicas=table.number("replicas", 1, 1, 5),
    )
    table.done()
    if not queue.url:
        if queue != Queue(""):
            raise table.wrong("url", "is needed")
        return None
    if bool(queue.user) != bool(queue.password):
        raise table.wrong("user", "user and password_file go together")
    if bool(queue.certificate) != bool(queue.key):
        raise table.wrong("certificate_file", "certificate_file and key_file go together")
    return queue


def _webhook(table: _Table, least: Severity) -> Webhook:
    webhook = Webhook(
        table.text("name", None, _target_name),
        table.text("url", None, _url),
        table.secret("secret_file"),
        table.file("ca_file"),
        table.severity("min_severity", least),
    )
    table.done()
    return webhook


def _mail(table: _Table, least: Severity) -> Mail:
    tls = table.text("tls", "starttls", _one_of("starttls", "implicit", "none"))
    mail = Mail(
        name=table.text("name", None, _target_name),
        server=table.text("server", None, _filled),
        port=table.number("port", {"starttls": 587, "implicit": 465, "none": 25}[tls], 1, 65535),
        tls=tls,
        user=table.text("user", ""),
        password=table.secret("password_file").decode("utf-8", "replace"),
        sender=table.text("from", None, _address),
        to=table.texts("to", None, _address, RECIPIENTS_MAX),
        ca=table.file("ca_file"),
        least=table.severity("min_severity", least),
    )
    if bool(mail.user) != bool(mail.password):
        raise table.wrong("user", "user and password_file go together")
    if mail.user and tls == "none":
        raise table.wrong("tls", "a password is only sent over TLS")
    table.done()
    return mail


class _Table:
    """One table of the document. Each key is asked for once; what nobody asked for is an error."""

    def __init__(self, table: dict[str, Any], path: str, prefix: str) -> None:
        self._table = table
        self._path = path
        self._prefix = prefix
        self._asked: set[str] = set()

    def wrong(self, key: str, why: str) -> SettingsError:
        return SettingsError(f"{self._path}: {self._prefix}{key}: {why}")

    def _get(self, key: str, default: Any) -> Any:
        self._asked.add(key)
        value = self._table.get(key, default)
        if value is None:
            raise self.wrong(key, "is needed")
        return value

    def known(self, key: str) -> None:
        """A key of this name may stand here."""
        self._asked.add(key)

    def done(self) -> None:
        for key in self._table:
            if key not in self._asked:
                raise self.wrong(key[:80], f"unknown; known here: {', '.join(sorted(self._asked))}")

    def table(self, key: str) -> _Table:
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "expected a table")
        return _Table(value, self._path, f"{self._prefix}{key}.")

    def tables(self, key: str) -> list[_Table]:
        value = self._get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.wrong(key, f"expected [[{self._prefix}{key}]]")
        return [_Table(item, self._path, f"{self._prefix}{key}[{place}].") for place, item in enumerate(value)]

    def text(self, key: str, default: str | None, check: Callable[[str], object] = str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "expected a text in quotes")
        return self._checked(key, value, check) if value or default is None else value

    def texts(
        self, key: str, default: Sequence[str] | None, check: Callable[[str], object], most: int
    ) -> tuple[str, ...]:
        value = self._get(key, default)
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "expected a list of texts")
        if len(value) > most or (default is None and not value):
            raise self.wrong(key, f"expected 1 to {most} texts")
        return tuple(self._checked(key, item, check) for item in value)

    def _checked(self, key: str, value: str, check: Callable[[str], object]) -> str:
        try:
            check(value)
        except ValueError as error:
            raise self.wrong(key, f"{value[:80]!r}: {error}") from error
        return value

    def number(self, key: str, default: int, least: int, most: int) -> int:
        value = self._get(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"expected a whole number from {least} to {most}")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "expected true or false")
        return value

    def severity(self, key: str, default: Severity) -> Severity:
        name = self.text(key, default.name.lower(), _one_of(*SEVERITIES))
        return SEVERITIES[name]

    def file(self, key: str) -> str:
        """A path, from the folder of the configuration. It must be readable now."""
        value = self.text(key, "")
        if not value:
            return ""
        path = os.path.join(os.path.dirname(os.path.abspath(self._path)), value)
        if not os.access(path, os.R_OK):
            raise self.wrong(key, f"{path}: cannot be read")
        return path

    def private(self, key: str) -> str:
        """A path as `file`, of what only its owner and group may read."""
        return self.file(key) if self.secret(key) else ""

    def secret(self, key: str) -> bytes:
        """What stands in a file that nobody but its owner and group may read, without the line's end."""
        value = self.text(key, "")
        if not value:
            return b""
        path = os.path.join(os.path.dirname(os.path.abspath(self._path)), value)
        try:
            with open(path, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                data = file.read(SECRET_MAX + 1)
        except OSError as error:
            raise self.wrong(key, f"{path}: {error.strerror}") from error
        if mode & stat.S_IRWXO:
            raise self.wrong(key, f"{path}: anybody may read it; chmod o= {path}")
        secret = data.rstrip(b"\r\n")
        if not 0 < len(secret) <= SECRET_MAX:
            raise self.wrong(key, f"{path}: expected 1 to {SECRET_MAX} bytes")
        return secret


def _hours(text: str) -> tuple[int, int]:
    found = _CLOCK.fullmatch(text)
    if not found:
        raise ValueError('expected "HH:MM-HH:MM"')
    hour, minute, to_hour, to_minute = (int(part) for part in found.groups())
    begin, end = hour * 60 + minute, to_hour * 60 + to_minute
    if begin == end:
        raise ValueError("begins when it ends")
    return begin, end


def _zone(text: str) -> None:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError('no such time zone here; expected one like "Europe/Berlin" (package tzdata)') from error


def _url(text: str) -> None:
    parts = urlsplit(text)
    local = parts.hostname in {"127.0.0.1", "::1", "localhost"}
    if parts.scheme not in {"https", "http"} or not parts.hostname or not text.isascii() or not text.isprintable():
        raise ValueError("expected https://HOST/PATH")
    if parts.scheme == "http" and not local:
        raise ValueError("http only to this machine itself")
    if parts.username or parts.password or " " in text or not 0 <= (parts.port or 0) <= 65535:
        raise ValueError("expected https://HOST/PATH without a name or password")


def _broker(text: str) -> None:
    parts = urlsplit(text)
    if parts.scheme != "mqtts" or not parts.hostname or parts.path not in {"", "/"} or parts.query or parts.username:
        raise ValueError("expected mqtts://HOST[:PORT]")
    if not text.isascii() or not text.isprintable() or not 0 <= (parts.port or 0) <= 65535:
        raise ValueError("expected mqtts://HOST[:PORT]")


def _nats(text: str) -> None:
    """nats:// to this machine, tls:// to any: what lies in the stream is readable to whoever listens."""
    parts = urlsplit(text)
    local = parts.hostname in {"127.0.0.1", "::1", "localhost"}
    if parts.scheme not in {"nats", "tls"} or not parts.hostname or not 0 <= (parts.port or 0) <= 65535:
        raise ValueError("expected nats://HOST:PORT or tls://HOST:PORT")
    if parts.scheme == "nats" and not local:
        raise ValueError("nats:// only to this machine itself; elsewhere tls://")
    if parts.username or parts.password or parts.path or not text.isascii() or not text.isprintable():
        raise ValueError("no name, password or path in it: user and password_file")


def _listen(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535 or not host:
        raise ValueError("expected ADDRESS:PORT")
    return host.strip("[]"), int(port)


def _database(text: str) -> None:
    if urlsplit(text).scheme not in {"postgresql", "postgres"}:
        raise ValueError("expected postgresql://USER@HOST/NAME")
    if urlsplit(text).password:
        raise ValueError("a password belongs into a file: password_file")


def _with_password(url: str, password: bytes) -> str:
    if not password:
        return url
    from urllib.parse import quote

    scheme, _, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}://{user}:{quote(password, safe='')}{at}{place}"


def _target_name(text: str) -> None:
    if not _TARGET.fullmatch(text):
        raise ValueError("a name has a-z, 0-9, '.', '_', '-', at most 32")


def _address(text: str) -> None:
    if not _ADDRESS.fullmatch(text):
        raise ValueError("expected NAME@HOST")


def _filled(text: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9.:_-]{1,255}", text):
        raise ValueError("expected a host's name or address")


def _one_of(*words: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        if text not in words:
            raise ValueError(f"expected one of {', '.join(words)}")

    return check
