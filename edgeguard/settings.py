"""How the agent runs here: paths, budgets, uplink (agent.toml). Never what the device should be: that is policy.

Every key is optional. An unknown key or a wrong type is an error, because a setting that is silently ignored
is worse than a daemon that says why it does not start.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from edgeguard.errors import SettingsError

DEFAULT_FILE = "/etc/edgeguard/agent.toml"
SIZE_MAX = 64 * 1024  # bytes; a real one has less than two
FREE_PERCENT_MAX = 90
IDENTITY_KINDS = ("file", "credential", "tpm2")
TCTIS = ("device", "tabrmd", "swtpm", "mssim")  # not `cmd`, which runs a program, and no path of a library
_HEX = frozenset("0123456789abcdef")
NUMBER_MAX = 2**63 - 1  # TOML promises no more, and no budget comes near


class Paths(NamedTuple):
    """Every place that EdgeGuard touches, so that a second one runs beside the first in a test."""

    root: str = "/"  # what is watched
    state: str = "/var/lib/edgeguard"
    runtime: str = "/run/edgeguard"
    exchange: str = "/var/spool/edgeguard"  # outbox/: segments for the uplink; inbox/: receipts from it
    vendor_policy: str = "/usr/lib/edgeguard/policy.d"
    site_policy: str = "/etc/edgeguard/policy.d"
    trust: str = "/etc/edgeguard/trust.d"  # fleet keys (*.pub, 64 hex digits); empty: trust is local
    libexec: str = "/usr/lib/edgeguard"  # helper programs
    act_socket: str = "/run/edgeguard/act.sock"


class Second(NamedTuple):
    """Another collector. No url: there is none."""

    url: str = ""
    ca: str = "/etc/edgeguard/uplink/second/ca.pem"
    certificate: str = "/etc/edgeguard/uplink/second/client.pem"
    key: str = "/etc/edgeguard/uplink/second/client.key"
    collector_key: str = "/etc/edgeguard/uplink/second/collector.pub"
    mode: str = "fallback"  # hears what waits while the first does not answer; or copy: gets everything, too


class Uplink(NamedTuple):
    """Where records go. No url: they stay here, within the quota."""

    url: str = ""  # https://collector.example:7443, or mqtts://broker.example:8883
    ca: str = "/etc/edgeguard/uplink/ca.pem"
    certificate: str = "/etc/edgeguard/uplink/client.pem"
    key: str = "/etc/edgeguard/uplink/client.key"
    collector_key: str = "/etc/edgeguard/uplink/collector.pub"  # 64 hex digits: verifies receipts
    flush_s: int = 3600  # how long ordinary records may wait
    heartbeat_s: int = 3600  # how often a sign of life says how far each stream is sealed
    spawn: bool = False  # True: the daemon starts the uplink itself (no systemd); False: it rings runtime/doorbell
    day_bytes: int = 0  # on the wire in a day, both directions; not set: no bound
    rate_bytes: int = 0  # a second, averaged over a minute, of which the backlog gets half; not set: no bound
    export_key: str = "/etc/edgeguard/uplink/operator.pub"  # 64 hex digits: `edgeguard log export` encrypts to it
    second: Second = Second()


class Budget(NamedTuple):
    """Bounds on what EdgeGuard may take from the device."""

    spool_bytes: int = 32 * 1024 * 1024  # of the disk, for sealed segments
    disk_free_percent: int = 10  # of the disk, which sealed segments leave free for others
    vault_bytes: int = 64 * 1024 * 1024  # protected copies for restore
    hash_file_max: int = 4 * 1024 * 1024 * 1024  # of a larger file only the attributes, and that is said
    sweep_s: int = 6 * 3600  # between incremental sweeps
    deep_s: int = 24 * 3600  # in which every content is read again once, a little at a time
    metrics_s: int = 900  # between two records of how busy the device is
    findings_max: int = 10_000  # open findings kept; beyond, they are counted by code


class Identity(NamedTuple):
    """Where the device's identity key is."""

    kind: str = "file"  # keys/device.key in the state directory; credential: of systemd; tpm2: it never leaves the TPM
    handle: str = "0x81024547"  # persistent handle of the key in the TPM
    tcti: str = "device:/dev/tpmrm0"  # how tpm2-tools reach the TPM: through the kernel's resource manager

    def where(self) -> str:
        """For people."""
        if self.kind == "tpm2":
            return f"in the TPM at {self.handle}"
        return "a credential of systemd" if self.kind == "credential" else "in a file"


class Settings(NamedTuple):
    name: str = ""  # of the device on screens; empty: the host name
    fleet: str = ""
    mode: str = "audit"  # the device's one switch; a rule is carried out only if the signed policy says enforce too
    reader_group: str = "edgeguard"
    admin_group: str = "edgeguard-admin"
    paths: Paths = Paths()
    uplink: Uplink = Uplink()
    budget: Budget = Budget()
    identity: Identity = Identity()


MQTTS = "mqtts://"


def transport(url: str) -> str:
    """By what a collector is spoken to: "mqtt", by way of a broker, or "https"; "" where there is no url."""
    return "" if not url else "mqtt" if url.startswith(MQTTS) else "https"


def load(path: str = DEFAULT_FILE) -> Settings:
    """Read agent.toml; a missing file gives the defaults.

    Raises SettingsError with file and, where the TOML itself is broken, line and column.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    with open(fd, "rb") as file:
        text = file.read(SIZE_MAX + 1)
    if len(text) > SIZE_MAX:
        raise SettingsError(f"{path}: larger than {SIZE_MAX} bytes")
    return parse(text, path)


def parse(text: bytes, path: str = DEFAULT_FILE) -> Settings:
    """The settings in a TOML text; `path` is for messages only."""
    import tomllib  # 2.5 MB of private memory: only while a file is read

    try:
        document = tomllib.loads(text.decode())
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, a number of more than 4,300 digits
        raise SettingsError(f"{path}: {error}") from error
    except RecursionError as error:
        raise SettingsError(f"{path}: nested too deeply") from error
    settings: Settings = _build(Settings, document, path, "")
    if settings.mode not in ("audit", "enforce"):
        raise SettingsError(f'{path}: mode: expected "audit" or "enforce"')
    if settings.budget.disk_free_percent > FREE_PERCENT_MAX:
        raise SettingsError(f"{path}: budget.disk_free_percent: expected a number from 1 to {FREE_PERCENT_MAX}")
    if settings.uplink.second.mode not in ("fallback", "copy"):
        raise SettingsError(f'{path}: uplink.second.mode: expected "fallback" or "copy"')
    _check_identity(settings.identity, path)
    return settings


def _check_identity(identity: Identity, path: str) -> None:
    if identity.kind not in IDENTITY_KINDS:
        raise SettingsError(f"{path}: identity.kind: expected one of {', '.join(IDENTITY_KINDS)}")
    digits = identity.handle[4:].lower()
    if len(digits) != 6 or not identity.handle.startswith("0x81") or digits[0] > "7" or set(digits) - _HEX:
        raise SettingsError(f"{path}: identity.handle: expected a persistent handle, 0x81000000 to 0x817fffff")
    if identity.tcti.partition(":")[0] not in TCTIS or not identity.tcti.isprintable():
        raise SettingsError(f"{path}: identity.tcti: expected one of {', '.join(TCTIS)}, a colon and where")


def _build(shape: Any, table: dict[str, Any], path: str, prefix: str) -> Any:
    """`shape` filled from a table, strictly: field names are the keys and the default's type is the type."""
    known = shape._fields
    values: dict[str, Any] = {}
    defaults = shape()
    for key, value in table.items():
        name = prefix + key
        if key not in known:
            raise SettingsError(f"{path}: unknown setting {name[:80]!r}; known here: {', '.join(known)}")
        default = getattr(defaults, key)
        if isinstance(default, (Paths, Uplink, Second, Budget, Identity)):
            if not isinstance(value, dict):
                raise SettingsError(f"{path}: {name}: expected a table")
            values[key] = _build(type(default), value, path, name + ".")
        elif type(value) is not type(default):
            raise SettingsError(f"{path}: {name}: expected {_noun(default)}, got {_shown(value)}")
        elif isinstance(value, int) and not isinstance(value, bool) and not 0 < value <= NUMBER_MAX:
            raise SettingsError(f"{path}: {name}: expected a number from 1 to {NUMBER_MAX}, got {_shown(value)}")
        else:
            values[key] = value
    return shape(**values)


def _shown(value: Any) -> str:
    """A value for a message."""
    try:
        return repr(value)[:80]
    except ValueError:  # hexadecimal may spell a number that Python refuses to write in decimal digits
        return "a giant number"
    except RecursionError:  # dotted keys nest a table in a table thousands of times, and tomllib takes them
        return "a table nested too deeply"


def _noun(default: object) -> str:
    if isinstance(default, bool):
        return "true or false"
    return "a whole number" if isinstance(default, int) else "a text in quotes"
