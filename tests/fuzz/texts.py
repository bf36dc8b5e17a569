"""Texts that people and Debian's tools write: policy, settings, dpkg's files, sshd_config, accounts."""

from __future__ import annotations

import contextlib
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import edgeguard
from edgeguard import settings as agent
from edgeguard.baseline import aide_conf, aide_policy, slots
from edgeguard.baseline import image as images
from edgeguard.baseline import policy as policies
from edgeguard.baseline.document import Baseline, compile_baseline
from edgeguard.collector import config
from edgeguard.errors import Corrupt, EdgeGuardError
from edgeguard.sensors import TABLE, parse_accounts, parse_dpkg, parse_ldcache, parse_sshd, sensor_class, users
from edgeguard.sensors.changes import SENTENCE_MAX, SENTENCES_MAX, compare, secrets
from edgeguard.sensors.changes.unified import BYTES_MAX, SHOWN_MAX
from edgeguard.upgrades import account_lines, archive, postrm, transactions, versions
from tests.fuzz.each import each

NOW = 1_790_000_000_000
TODAY = 20_000  # days since 1970
CHANGED = (
    *("/etc/app.conf", "/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/sudoers", "/etc/crontab"),
    *("/etc/ssh/sshd_config", "/etc/systemd/system/x.service", "/var/spool/cron/crontabs/x"),
)
SECRET = "q7Vq3xZ-Tr0ub4dor"


@cache
def known() -> tuple[Any, Any]:
    """Finding codes and kinds, as the daemon hands them to the reader of policies."""
    with (Path(edgeguard.__file__).parent / "codes.toml").open("rb") as file:
        codes = {code: (entry["title"], entry["severity"]) for code, entry in tomllib.load(file).items()}
    kinds: dict[str, Any] = {}
    for name in TABLE:
        kinds.update(sensor_class(name).kinds)
    return codes, kinds


def policy(data: bytes) -> None:
    codes, kinds = known()
    each(data, lambda data: policies.parse([("50-site.toml", data)]))  # as `edgeguard policy lint` elsewhere
    found = policies.parse([("50-site.toml", data)], codes, kinds, now=NOW)
    document = compile_baseline(found, {}, None, 1, NOW)
    assert Baseline.from_cbor(document.to_cbor()).policy.rules == found.rules


def image(data: bytes) -> None:
    """os-release of an image, and the file of slots that comes of it."""
    name = images.name_in(data)
    assert len(name) <= images.NAME_MAX
    assert not name or name.isprintable()
    found = slots.from_text(data)
    assert len(found) <= slots.SLOTS_MAX
    assert slots.from_text(slots.to_text(found)) == found
    for slot in found:
        named = images.for_image(compile_baseline(policies.Policy(), {}, None, 1, NOW), slot.image)
        with contextlib.suppress(Corrupt):  # a name that no baseline may have
            assert images.image_of(Baseline.from_cbor(named.to_cbor())) == slot.image


class AideFiles:
    """A machine with one file of AIDE's, which may include itself."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def text(self, path: str) -> bytes:
        if "x" in path:
            raise FileNotFoundError(2, "not there", path)
        return self.data

    def names(self, directory: str) -> list[str]:
        return [directory[-3:], "a"]

    def executable(self, path: str) -> bool:
        return path.endswith("a")

    def exists(self, path: str) -> bool:
        return len(path) % 2 == 0


def aide(data: bytes) -> None:
    """Whatever is read, what is written is a policy."""
    conf = aide_conf.AideConf(AideFiles(data), "pump-07")
    conf.read("/etc/aide/aide.conf")
    made = aide_policy.Importer(()).run(conf.rules, conf.said, "/etc/aide/aide.conf")
    policies.parse([("60-aide.toml", made.text.encode())])


def settings(data: bytes) -> None:
    each(data, agent.parse, lambda data: config.parse(data, "/nowhere/edgeguard-collector.toml"))


def dpkg(data: bytes) -> None:
    lines = [line + b"\n" for line in data.split(b"\n")]
    each(lines, parse_dpkg.packages)
    for path in parse_dpkg.diversions(data):
        assert path in parse_dpkg.aliases(path)
    assert all(path.startswith(b"/") and b"/../" not in path + b"/" for path in postrm.removed(data))
    for found in (account_lines.made(data), account_lines.declared(data), account_lines.taken(data)):
        assert all(subject.startswith(("user ", "group ")) and subject.isprintable() for subject in found)


def sshd(data: bytes) -> None:
    """As the sensor reads it, without Includes."""
    lines = [words for line in data.split(b"\n") if (words := parse_sshd.words(line))]
    for setting in parse_sshd.settings(lines):
        assert setting.keyword in parse_sshd.KEYWORDS


def libraries(data: bytes) -> None:
    """The loader's cache, and its configuration."""
    configured = frozenset(said for include, said in parse_ldcache.lines(data) if not include)
    assert all(parse_ldcache.origin(directory, configured) != "neither" for directory in configured)
    for machine in ("little", "big"):
        with contextlib.suppress(EdgeGuardError):
            found = parse_ldcache.directories(data, machine)
            assert len(found) <= parse_ldcache.DIRECTORIES_MAX
            assert all(library and "/" not in library for library in found.values())


def accounts(data: bytes) -> None:
    each(
        data, parse_accounts.users, parse_accounts.groups, parse_accounts.group_shadow, parse_accounts.keys, users.parse
    )
    each(data, lambda data: parse_accounts.shadow(data, TODAY))


def apt(data: bytes) -> None:
    """What apt tells the hook, its sources, Release files and their signatures, and versions."""
    removals, before, _debs = transactions.apt_lines(data)
    for name, version, architecture in removals:
        assert version == "-" or {name, f"{name}:{architecture}"} <= before.keys()
    for name, where in transactions.operands(data.split(b"\0")):
        assert "/" not in name + where
    text = data.decode("utf-8", "surrogateescape")
    for source in archive.read_sources(text, "/"):
        assert "/" not in source.prefix
    if (parts := archive.clear_signed(data)) is not None:
        assert parts[1].startswith(b"-----BEGIN PGP SIGNATURE-----")
    archive.dearmoured(data)
    archive.listed(data, "main_binary-all_Packages")
    one, _, two = text.partition("\n")
    assert versions.compare(one, two) == -versions.compare(two, one)


def changes(data: bytes) -> None:
    """Old and new content of a file, with a line of 64 dashes between them: bounded, and without the secret."""
    old, _, new = data.partition(b"-" * 64 + b"\n")
    for path in CHANGED:
        told = compare(path, old, new)
        assert len(told.diff) <= SHOWN_MAX + 1
        assert sum(len(line.encode()) for line in told.diff) <= BYTES_MAX + 200
        assert len(told.changes) <= SENTENCES_MAX + 1
        assert all(len(sentence) <= SENTENCE_MAX for sentence in told.changes)
    if b"\0" in new:
        return
    try:
        text = new.decode()
    except UnicodeDecodeError:
        return
    shown = secrets.lines(text)
    assert "\n".join(line.key for line in shown).rstrip("\n") == text.rstrip("\n")  # no line is lost
    line = f"password = {SECRET}"
    assert SECRET not in "\n".join(item.shown for item in secrets.lines(f"{text}\n{line}\n"))
