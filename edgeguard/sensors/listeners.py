"""Listeners: TCP ports that accept connections and UDP ports that accept datagrams, and whose they are.

A look is one dump of the kernel's table (0.2 ms). Only for sockets that are new is the owner searched in /proc; of
known ones it is only checked that it still holds the socket. On the best rung the kernel rings when a port is opened,
and the daemon looks soon after (`looks_after`); without it, only what happens to be looked at after a program started
or every ten seconds is found. What is judged always comes from a look: the bell only says when.

Not seen: other network namespaces (containers without published ports), raw and packet sockets, SCTP, and a UDP port
of the ephemeral range that lives for less than a second, because every DNS question opens one.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from edgeguard.errors import DecodeError, Unavailable
from edgeguard.linux import procnet
from edgeguard.linux.portbell import PortBell
from edgeguard.linux.procfs import DELETED, Owner, Procfs
from edgeguard.linux.sockdiag import SockDiag, Socket
from edgeguard.model import NOBODY, Observation, Origin, Status
from edgeguard.sensors import Column, Context, Rung
from edgeguard.sensors.snapshot import WHOLE_KIND
from edgeguard.sensors.users import Users

COLUMNS: Mapping[str, Column] = {
    "protocol": Column("str", "tcp or udp"),
    "address": Column("str", "local address, with %interface where it is bound to one"),
    "port": Column("int", "local port"),
    "scope": Column("str", "who can reach it: any, link (link-local), address (one address), loopback"),
    "exe": Column("str", "program that holds the socket; empty if nobody (the kernel itself) or not to be seen", True),
    "uid": Column("int", "user who made the socket", True),
    "user": Column("str", "its name", True),
    "unit": Column("str", "systemd unit; the number in the name of a session or transient unit is *", True),
    "package": Column("str", "Debian package of the program"),
    "pid": Column("int", "process that holds the socket"),
    "ephemeral": Column("bool", "udp, and the port is one that the kernel gives to whoever asks for any"),
    "exe_known": Column("bool", "the program is in the baseline"),
    "owner": Column(
        "str", "process; none (no process holds it: the kernel, or out of sight); hidden (not for us to see)"
    ),
    "dual": Column("bool", "an IPv6 wildcard that takes IPv4 connections too"),
    "sharers": Column("list", "all programs on this address and port, if there are several"),
}
VOLATILE = frozenset(("pid", "dual"))

EPHEMERAL_MS = 1000  # an ephemeral UDP port must be there this long: at a second look after so much time
OWNER_LOOKS = 4  # attempts to find the owner of a socket, one a look; then it has none until it is new again
PORTS_MAX = 4096  # subjects in one look; beyond, they are counted in one
EPHEMERAL = (32768, 60999)  # ip_local_port_range if it cannot be read

NAMESPACES = "Ports inside other network namespaces (containers) are not seen."
RAW = "Raw sockets are not seen."
LATE = "A port that a running program opens is seen up to {} s later; one that is closed before is not."

HEARD_S = 3.0  # what a look finds so soon after the bell is what it rang for; the last look follows after 1 s

_TRANSIENT = re.compile(r"\A(session|run|user-runtime-dir@|docker|libpod|crio|cri-containerd)([-@])[^/]*(\.\w+)\Z")


class _Known(NamedTuple):
    """What is remembered of a socket, by inode."""

    owner: Owner | None
    link: str  # exe link of the owner
    attempts: int
    sequence: int  # in order of first sight: of sockets that share a port, the newest is shown
    told: Observation | None  # made when something changed; told again as it is otherwise


class Listeners:
    """Sensor of kind "listener"."""

    name = "listeners"
    kinds: Mapping[str, Mapping[str, Column]] = {"listener": COLUMNS}
    ladder = ("bpf", "sock_diag", "proc net")
    triggers: tuple[str, ...] = ()
    interval_s = 10
    volatile = VOLATILE
    # After a ring, in seconds: it comes before the socket has its final state, and its owner may hand it on.
    looks_after = (0.1, 1.0)

    def __init__(self, context: Context) -> None:
        self.rung = Rung("", proven=False)
        self._context = context
        self._real = context.root.rstrip("/") == ""
        self._procfs = Procfs(context.root)
        self._users = Users(context.root)
        self._diag: SockDiag | None = None
        self._bell: PortBell | None = None
        self._known: dict[int, _Known] = {}
        self._once: dict[int, int] = {}  # ephemeral sockets that were not there long enough: since when
        self._sequence = 0
        self._interfaces: dict[int, str] = {}
        self._ephemeral = EPHEMERAL
        self._recent: Collection[int] = ()
        self._heard = float("-inf")  # when the bell rang last

    def start(self) -> Rung:
        tried: list[tuple[str, str]] = []
        blind = [NAMESPACES, RAW]
        name, proven = "proc net", True
        if self._real:
            try:
                self._diag = SockDiag()
                proven = self._prove(self._diag)
                name = self._hang_bell(tried, blind)
            except (OSError, Unavailable, DecodeError) as error:
                tried += [("bpf", "needs sock_diag"), ("sock_diag", _why(error))]
                if self._diag is not None:
                    self._diag.close()
                    self._diag = None
        if self._bell is None:
            blind.insert(0, LATE.format(self.interval_s))
        if not proven:
            blind.append("Whether the kernel lists all ports could not be checked.")
        try:
            self._bound()
        except (OSError, DecodeError) as error:
            name, proven = "proc net", False
            blind.insert(0, f"Ports cannot be listed: {_why(error)}.")
        if self._real and not _may_see_all(self._procfs):
            blind.append("Of some ports the owner is not seen (that needs CAP_SYS_PTRACE).")
        self.rung = Rung(name, proven, tuple(blind), tuple(tried))
        return self.rung

    def fileno(self) -> int | None:
        return self._bell.fileno() if self._bell is not None else None

    def ready(self, now: int) -> Iterable[Observation]:
        """The bell rang: nothing to tell yet; the looks that follow do (`looks_after`)."""
        del now
        if self._bell is not None:
            self.started(self._bell.rang())
            self._heard = time.monotonic()
        return ()

    def observe(self, now: int) -> Iterable[Observation]:
        try:
            sockets = self._bound()
        except (OSError, DecodeError, Unavailable) as error:
            yield Observation("listener", WHOLE_KIND, {}, now, Status.UNREADABLE, Origin.SWEEP, NOBODY, str(error))
            return
        for subject, (one, group) in self._subjects(self._settled(sockets, now)).items():
            known = self._known[one.inode]
            told = known.told
            if told is None or told.subject != subject or self._known_by_now(told, known):
                told = self._observation(subject, one, known, now)
                self._known[one.inode] = known._replace(told=told)
            if len(group) > 1 and len(sharers := self._sharers(group)) > 1:
                told = told._replace(columns={**told.columns, "sharers": sharers})
            yield told

    def close(self) -> None:
        if self._diag is not None:
            self._diag.close()
            self._diag = None
        if self._bell is not None:
            self._bell.close()
            self._bell = None

    # -- for the rest of the house

    def started(self, pids: Collection[int]) -> None:
        """These processes opened ports just now: the owners of new sockets are looked for among them first."""
        self._recent = tuple(pids)[-64:]

    def renew(self) -> None:
        """Another baseline is in force: ask anew what is known."""
        self._known = {inode: known._replace(told=None) for inode, known in self._known.items()}

    # -- looking

    def _bound(self) -> list[Socket]:
        return self._diag.bound() if self._diag is not None else procnet.bound(self._procfs.path)

    def _hang_bell(self, tried: list[tuple[str, str]], blind: list[str]) -> str:
        """With a bell above it, looking is the better rung; which of them stands."""
        try:
            self._bell = PortBell(self._port_range())
        except Unavailable as error:
            tried.append(("bpf", str(error)))
            return "sock_diag"
        if self._bell.deaf:
            blind.append(f"A UDP port that a running program opens is only seen at the next look ({self._bell.deaf}).")
        return "bpf"

    def _prove(self, diag: SockDiag) -> bool:
        """Two views of the same table must agree; a socket may open or close between them, so they get three tries.

        A daemon that may not open an Internet socket cannot make one of its own to find. False: there is no second
        view to compare with (a /proc without /proc/net).
        """
        for _ in range(3):
            dumped = {one.inode for one in diag.bound()}
            try:
                listed = {one.inode for one in procnet.bound(self._procfs.path)}
            except OSError:
                return False
            if listed <= dumped | {0}:
                return True
        raise Unavailable("socket diagnostics hide sockets that /proc/net lists")

    def _settled(self, sockets: list[Socket], now: int) -> list[Socket]:
        """The sockets to speak of, with their owners found. Ephemeral UDP ports must have been there for a while."""
        self._ephemeral = self._port_range()
        since = {
            one.inode: self._once.get(one.inode, now)
            for one in sockets
            if self._is_ephemeral(one) and one.inode not in self._known
        }
        # A clock that was set back only lets one wait a little longer, one that was set forward less.
        self._once = {inode: min(first, now) for inode, first in since.items() if now - first < EPHEMERAL_MS}
        settled = [one for one in sockets if one.inode not in self._once]
        inodes = {one.inode for one in settled}
        self._known = {inode: known for inode, known in self._known.items() if inode in inodes}
        self._find_owners(settled)
        return settled

    def _find_owners(self, sockets: list[Socket]) -> None:
        search: list[int] = []
        for one in sockets:
            known = self._known.get(one.inode)
            if known is None:
                self._sequence += 1
                self._known[one.inode] = known = _nobody(self._sequence)
            elif known.owner is not None and not self._still(known, one.inode):
                self._known[one.inode] = known = _nobody(known.sequence)
            if known.owner is None and known.attempts < OWNER_LOOKS and one.inode:
                search.append(one.inode)
        if not search:
            return
        owners = self._procfs.owners(search, self._recent)
        for inode in search:
            known, owner = self._known[inode], owners.get(inode)
            link = self._procfs.exe(owner.pid) if owner else None
            self._known[inode] = known._replace(owner=owner, link=link or "", attempts=known.attempts + 1, told=None)

    def _still(self, known: _Known, inode: int) -> bool:
        """Does the same program still hold the socket? It may have been passed on, or have called exec."""
        assert known.owner is not None
        return self._procfs.holds(known.owner, inode) and (self._procfs.exe(known.owner.pid) or "") == known.link

    def _subjects(self, sockets: list[Socket]) -> dict[str, tuple[Socket, list[Socket]]]:
        """Sockets by subject. Several may share one (SO_REUSEPORT): the newest speaks for them."""
        subjects: dict[str, tuple[Socket, list[Socket]]] = {}
        for one in sorted(sockets, key=lambda one: self._known[one.inode].sequence):
            name = self._subject(one)
            if name in subjects:
                subjects[name] = (one, [*subjects[name][1], one])
            elif len(subjects) < PORTS_MAX:
                subjects[name] = (one, [one])
        return subjects

    def _sharers(self, sockets: list[Socket]) -> tuple[str, ...]:
        return tuple(sorted({self._known[one.inode].link.removesuffix(DELETED) for one in sockets} - {""}))

    # -- columns

    def _observation(self, subject: str, one: Socket, known: _Known, now: int) -> Observation:
        actor = self._context.actor_of(known.owner.pid) if known.owner else NOBODY
        rang = time.monotonic() - self._heard < HEARD_S  # else nobody told us: it is there since some time ago
        origin = Origin.LIVE if rang else Origin.SWEEP
        return Observation("listener", subject, self._columns(one, known), now, Status.PRESENT, origin, actor)

    def _known_by_now(self, told: Observation, known: _Known) -> bool:
        """The program was not in the baseline; is it now?"""
        if told.columns["exe_known"] or not known.link.startswith("/") or known.link != told.columns["exe"]:
            return False
        return self._context.known_file(known.link)

    def _columns(self, one: Socket, known: _Known) -> dict[str, Any]:
        exe = known.link.removesuffix(DELETED)
        pid = known.owner.pid if known.owner else None
        process = self._procfs.look(pid) if pid else None
        absolute = exe.startswith("/")
        return {
            "protocol": _protocol(one),
            "address": self._address(one),
            "port": one.port,
            "scope": scope(one.address),
            "exe": exe,
            "uid": one.uid,
            "user": self._users.name(one.uid),
            "unit": lasting_unit(process.unit) if process else "",
            "package": self._context.package_of(exe) if absolute else "",
            "pid": pid,
            "ephemeral": self._is_ephemeral(one),
            "exe_known": absolute and known.link == exe and self._context.known_file(exe),
            "owner": "process" if pid else "none" if _may_see_all(self._procfs) else "hidden",
            "dual": one.family == socket.AF_INET6 and not any(one.address) and not one.v6only,
            "sharers": (),
        }

    def _subject(self, one: Socket) -> str:
        address = self._address(one)
        return f"{_protocol(one)}/{f'[{address}]' if one.family == socket.AF_INET6 else address}:{one.port}"

    def _address(self, one: Socket) -> str:
        text = socket.inet_ntop(one.family, one.address)
        return f"{text}%{self._interface(one.interface)}" if one.interface else text

    def _interface(self, index: int) -> str:
        if index not in self._interfaces:
            if len(self._interfaces) > 256:  # interfaces that come and go (veth)
                self._interfaces.clear()
            try:
                self._interfaces[index] = socket.if_indextoname(index)
            except OSError:
                return str(index)
        return self._interfaces[index]

    def _is_ephemeral(self, one: Socket) -> bool:
        return one.protocol == socket.IPPROTO_UDP and self._ephemeral[0] <= one.port <= self._ephemeral[1]

    def _port_range(self) -> tuple[int, int]:
        try:
            fd = os.open(f"{self._procfs.path}/sys/net/ipv4/ip_local_port_range", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return self._ephemeral
        try:
            low, high = (int(part) for part in os.read(fd, 64).split())
        except (OSError, ValueError):
            return self._ephemeral
        finally:
            os.close(fd)
        return low, high


def scope(address: bytes) -> str:
    """Who can reach a socket that is bound to this address."""
    if len(address) == 16 and address[:12] == bytes(10) + b"\xff\xff":
        address = address[12:]  # IPv4 in IPv6
    if not any(address):
        return "any"
    if len(address) == 4:
        if address[0] == 127:
            return "loopback"
        return "link" if address[:2] == b"\xa9\xfe" else "address"
    if address == bytes(15) + b"\1":
        return "loopback"
    return "link" if address[0] == 0xFE and address[1] & 0xC0 == 0x80 else "address"


def lasting_unit(unit: str) -> str:
    """A unit's name without what differs at every start: session-7.scope and session-8.scope are one thing."""
    found = _TRANSIENT.match(unit)
    return f"{found[1]}{found[2]}*{found[3]}" if found else unit


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def _protocol(one: Socket) -> str:
    return "tcp" if one.protocol == socket.IPPROTO_TCP else "udp"


def _nobody(sequence: int) -> _Known:
    return _Known(None, "", 0, sequence, None)


def _may_see_all(procfs: Procfs) -> bool:
    """May we look into processes of others? pid 1 is somebody else's for every ordinary user."""
    try:
        os.readlink(f"{procfs.path}/1/exe")
    except OSError:
        return False
    return True
