"""AWS IoT Device Defender device metrics of one device: JSON or CBOR, long or short names, from its stored records.

What is open now comes of listener and connection records since the device's last boot; network_stats are the difference
of its last two metric records, and are left out where there is no earlier one. Totals are true; a list that is longer
than LISTED_MAX is cut, and the caller is told. Publish to $aws/things/NAME/defender/metrics/json (or /cbor), not more
often than every 300 seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple

from edgeguard.collector.database import Database
from edgeguard.records import registry

LISTED_MAX = 50  # ports or connections in one report, as AWS's own agent has it
TCP, UDP = 6, 17
VERSION = "1.0"
WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104 - looked for, not bound
OPEN = {"seen", "opened", "created"}
OVER = {"closed", "gone", "removed"}

SHORT = {
    "header": "hed",
    "metrics": "met",
    "custom_metrics": "cmet",
    "report_id": "rid",
    "version": "v",
    "listening_tcp_ports": "tp",
    "listening_udp_ports": "up",
    "ports": "pts",
    "port": "pt",
    "interface": "if",
    "total": "t",
    "tcp_connections": "tc",
    "established_connections": "ec",
    "connections": "cs",
    "remote_addr": "rad",
    "local_port": "lp",
    "network_stats": "ns",
    "bytes_in": "bi",
    "bytes_out": "bo",
}
CUSTOM = {  # of a metric record; names are ours in both forms
    "processes": "edgeguard_processes",
    "memory_free_kib": "edgeguard_memory_free_kib",
    "disk_free_kib": "edgeguard_disk_free_kib",
    "temperature_mc": "edgeguard_temperature_mc",
    "load_permille": "edgeguard_load_permille",
    "open_findings": "edgeguard_open_findings",
    "lost": "edgeguard_lost",
}


class Seen(NamedTuple):
    """What a device's records say of now."""

    listeners: tuple[tuple[int, str, int], ...] = ()  # protocol, address, port
    connections: tuple[tuple[str, int, int], ...] = ()  # remote address and port, local port
    metric: Mapping[str, Any] = {}
    before: Mapping[str, Any] | None = None  # the metric record before that one


class Cut(NamedTuple):
    """A list that is longer in truth."""

    name: str
    total: int


def seen(db: Database, device: bytes) -> Seen:
    """From the records of the device's last boot."""
    row = db.execute("SELECT max(boot) FROM records WHERE device = ?", (device,)).fetchone()
    if row[0] is None:
        return Seen()
    types = [int(kind.number) for kind in (registry.LISTENER, registry.CONNECTION, registry.METRIC)]
    rows = db.each(
        "SELECT body FROM records WHERE device = ? AND boot = ? AND type IN (?, ?, ?) ORDER BY mono, stream, seq",
        (device, row[0], *types),
    )
    return gathered(json.loads(body) for (body,) in rows)


def gathered(bodies: Iterable[Mapping[str, Any]]) -> Seen:
    """What is open after all of these, in their order. What lacks its number or address is none."""
    listeners: dict[tuple[int, str, int], None] = {}
    connections: dict[tuple[str, int, int], None] = {}
    metrics: list[Mapping[str, Any]] = []
    for body in bodies:
        if body["type"] == "metric":
            metrics = [*metrics[-1:], body]
        elif body["type"] == "listener":
            _follow(listeners, body, (body.get("protocol"), body.get("address"), body.get("port")))
        elif body.get("protocol") == TCP:
            _follow(connections, body, (body.get("remote_address"), body.get("remote_port"), body.get("local_port")))
    return Seen(
        tuple(sorted(listeners)),
        tuple(sorted(connections)),
        metrics[-1] if metrics else {},
        metrics[-2] if len(metrics) > 1 else None,
    )


def _follow(now: dict[Any, None], body: Mapping[str, Any], key: tuple[Any, ...]) -> None:
    numbers = [item for item in key if type(item) is int]
    addresses = [item for item in key if isinstance(item, str) and _is_address(item)]
    if len(numbers) != 2 or len(addresses) != 1 or not 0 < numbers[-1] < 65536:
        return
    if body.get("action") in OPEN:
        now[key] = None
    elif body.get("action") in OVER:
        now.pop(key, None)


def report(found: Seen, identity: int) -> tuple[dict[str, Any], list[Cut]]:
    """A report with long names; `identity` must grow from report to report (seconds since the epoch do)."""
    cuts: list[Cut] = []
    metrics: dict[str, Any] = {}
    for number, name in ((TCP, "listening_tcp_ports"), (UDP, "listening_udp_ports")):
        ports = [_port(address, port) for protocol, address, port in found.listeners if protocol == number]
        metrics[name] = {"ports": _listed(name, ports, cuts), "total": len(ports)}
    connections = [
        {"remote_addr": _endpoint(address, port), "local_port": local} for address, port, local in found.connections
    ]
    metrics["tcp_connections"] = {
        "established_connections": {
            "connections": _listed("established_connections", connections, cuts),
            "total": len(connections),
        }
    }
    stats = _stats(found)
    if stats:
        metrics["network_stats"] = stats
    made: dict[str, Any] = {"header": {"report_id": identity, "version": VERSION}, "metrics": metrics}
    custom = {CUSTOM[name]: [{"number": found.metric[name]}] for name in CUSTOM if type(found.metric.get(name)) is int}
    if custom:
        made["custom_metrics"] = custom
    return made, cuts


def _listed(name: str, items: list[dict[str, Any]], cuts: list[Cut]) -> list[dict[str, Any]]:
    if len(items) > LISTED_MAX:
        cuts.append(Cut(name, len(items)))
    return items[:LISTED_MAX]


def _port(address: str, port: int) -> dict[str, Any]:
    """The interface is the address itself where that is every interface; of others we do not know the name."""
    return {"port": port, "interface": address} if address in WILDCARDS else {"port": port}


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _stats(found: Seen) -> dict[str, int]:
    """Differences; a counter that went back was begun anew, and then there is no difference."""
    stats = {}
    for name, counter in (("bytes_in", "received_bytes"), ("bytes_out", "sent_bytes")):
        now, before = found.metric.get(counter), (found.before or {}).get(counter)
        if type(now) is int and type(before) is int and now >= before:
            stats[name] = now - before
    return stats


def short(value: Any) -> Any:
    """The same report with short names all the way down; names of custom metrics stay."""
    if isinstance(value, dict):
        return {SHORT.get(key, key): item if key == "custom_metrics" else short(item) for key, item in value.items()}
    return [short(item) for item in value] if isinstance(value, list) else value


def encode(made: Mapping[str, Any], form: str) -> bytes:
    """`form`: json or cbor."""
    if form == "json":
        return json.dumps(made, separators=(",", ":")).encode()
    from cbor2 import dumps  # only here

    encoded: bytes = dumps(dict(made))
    return encoded


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
