"""Network: drop new traffic to an open port that nobody expects. The program behind it keeps running: see `process`."""

from __future__ import annotations

from edgeguard.errors import RemediationFailed, RemediationRefused, Unavailable
from edgeguard.linux import nft
from edgeguard.remediations import Order, Plan, World, preflight


class BlockPort:
    """A port into the set of blocked ports; local programs still reach it over the loopback."""

    verb = "block-port"
    kinds = ("listener",)

    def prepare(self, order: Order, world: World) -> Plan:
        protocol, port = parse_subject(order.subject)
        if order.observed.get("scope") == "loopback":
            raise RemediationRefused("it can be reached from this device only")
        reason = preflight.port_carries(protocol, port, order.ports, world.proc)
        if reason:
            raise RemediationRefused(reason)
        try:
            before = port in nft.blocked(protocol, world.nft)
        except Unavailable as error:
            raise RemediationRefused(str(error)) from error
        return {"protocol": protocol, "port": port, "before": before}

    def apply(self, plan: Plan, world: World) -> str:
        try:
            nft.block(plan["protocol"], plan["port"], world.nft)
        except Unavailable as error:
            raise RemediationFailed(str(error)) from error
        return f"new traffic to {plan['protocol']} port {plan['port']} is dropped"

    def verify(self, plan: Plan, world: World) -> bool:
        try:
            return plan["port"] in nft.blocked(plan["protocol"], world.nft)
        except Unavailable as error:
            raise RemediationFailed(str(error)) from error

    def revert(self, plan: Plan, world: World) -> str:
        if plan["before"]:
            return "it was blocked before"
        try:
            nft.unblock(plan["protocol"], plan["port"], world.nft)
        except Unavailable as error:
            raise RemediationFailed(str(error)) from error
        return f"{plan['protocol']} port {plan['port']} is open again"


def parse_subject(subject: str) -> tuple[str, int]:
    """Protocol and port of "tcp/[::]:4444"."""
    protocol, _, address = subject.partition("/")
    port = address.rpartition(":")[2]
    if protocol not in nft.PROTOCOLS or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise RemediationRefused("the finding does not name a TCP or UDP port")
    return protocol, int(port)
