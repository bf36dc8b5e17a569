"""One nftables table of ours, by the nft program: a set of ports for each protocol and a chain that drops new traffic.

Facts of the kernel behind the design:
* A file given to `nft -f` is one transaction: all of it or nothing. `add table|set|chain` of what exists is no error,
  `add rule` adds it once more; so the chain is flushed and filled in the same transaction.
* A chain at priority filter - 10 sees a packet before the usual filter chains, and its "drop" is final, while its
  "accept" is not: other tables keep their say. Nothing of theirs is read or changed.
* New TCP is told by its flags (SYN without ACK), not by connection tracking, which costs memory and loads modules
  on devices that do without. Sessions that stand are never cut.

Ports are integers here, the program is started with fixed arguments, and the text never holds a word from outside.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from edgeguard.errors import Unavailable

TABLE = "edgeguard"
PROTOCOLS = ("tcp", "udp")
TIMEOUT_S = 10  # nft answers in milliseconds; more means that the kernel side hangs
OUTPUT_MAX = 4 * 1024 * 1024  # bytes; 65,536 ports in JSON are 0.5 MB

_FRAME = f"""\
add table inet {TABLE}
add set inet {TABLE} tcp_ports {{ type inet_service; }}
add set inet {TABLE} udp_ports {{ type inet_service; }}
add chain inet {TABLE} input {{ type filter hook input priority -10; policy accept; }}
flush chain inet {TABLE} input
add rule inet {TABLE} input iifname != "lo" tcp flags & (fin | syn | rst | ack) == syn tcp dport @tcp_ports counter drop
add rule inet {TABLE} input iifname != "lo" udp dport @udp_ports counter drop
"""


class NftFailed(Unavailable):
    """nft said no; the message is its first line."""


def block(protocol: str, port: int, nft: str = "/usr/sbin/nft") -> None:
    """Drop new traffic to a port. Again is no error."""
    _run(nft, ("-f", "-"), f"{_FRAME}add element inet {TABLE} {_set(protocol)} {{ {_port(port)} }}\n")


def unblock(protocol: str, port: int, nft: str = "/usr/sbin/nft") -> None:
    """Take a port out again; with the last one the whole table goes."""
    now = {(name, number) for name in PROTOCOLS for number in blocked(name, nft)}
    if (protocol, port) not in now:
        return
    if now == {(protocol, port)}:
        _run(nft, ("-f", "-"), f"delete table inet {TABLE}\n")
    else:
        _run(nft, ("-f", "-"), f"delete element inet {TABLE} {_set(protocol)} {{ {_port(port)} }}\n")


def blocked(protocol: str, nft: str = "/usr/sbin/nft") -> set[int]:
    """The ports that are blocked now. Empty where there is no table of ours."""
    output = _run(nft, ("-j", "list", "tables", "inet"), "")
    if not any(item.get("name") == TABLE for item in _items(output, "table")):
        return set()
    found: set[int] = set()
    for item in _items(_run(nft, ("-j", "list", "set", "inet", TABLE, _set(protocol)), ""), "set"):
        for element in item.get("elem", ()):
            found.update(_span(element))
    return found


def _span(element: object) -> range:
    """One element: a port, or a range where nft has merged neighbours."""
    if isinstance(element, dict) and isinstance(element.get("range"), list):
        first, last = element["range"]
        return range(int(first), int(last) + 1)
    return range(element, element + 1) if isinstance(element, int) else range(0)


def _items(output: bytes, kind: str) -> list[dict[str, Any]]:
    """The objects of one kind in nft's JSON (libnftables-json(5))."""
    try:
        document = json.loads(output)
    except ValueError as error:
        raise NftFailed("nft gave no JSON") from error
    items = document.get("nftables") if isinstance(document, dict) else None
    found = [item.get(kind) for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return [item for item in found if isinstance(item, dict)]


def _set(protocol: str) -> str:
    if protocol not in PROTOCOLS:
        raise ValueError(f"no set for protocol {protocol!r}")
    return protocol + "_ports"


def _port(port: int) -> int:
    if not 0 < int(port) < 65536:
        raise ValueError(f"port {port} is out of range")
    return int(port)


def _run(nft: str, arguments: Sequence[str], text: str) -> bytes:
    """Run nft with fixed arguments and our text on its standard input."""
    try:
        done = subprocess.run(
            (nft, *arguments),
            input=text.encode(),
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            cwd="/",
        )
    except FileNotFoundError as error:
        raise Unavailable("nft is not installed (package nftables)") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NftFailed(f"nft did not answer: {type(error).__name__}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines()
        raise NftFailed(lines[0][:200] if lines else f"nft ended with {done.returncode}")
    return done.stdout[:OUTPUT_MAX]
