"""Which way to a collector a url names: https, or mqtts by way of a broker. The rest of the uplink does not know.

What speaks MQTT is loaded only where it is asked for: paho takes 2 MB, and a device that does without need not have it.
"""

from __future__ import annotations

from typing import Protocol

from edgeguard.records.link import Link, Reply, Target
from edgeguard.settings import transport


class Way(Protocol):
    """A connection to one collector: `link.Link`, `mqttlink.MqttLink`. Everything raises UplinkError."""

    relayed: bool  # somebody stands between us and the collector who may repeat its words
    judged_at: int  # ms since 1970: the moment at which certificates are judged

    def room(self, most: int) -> tuple[int, int]: ...
    def post(self, body: bytes | None, path: str = ...) -> Reply: ...
    def spent(self) -> int: ...
    def close(self) -> None: ...


def way(target: Target) -> Way:
    """A connection; it is made when it is first used. Raises UplinkError for a url that is none."""
    if transport(target.url) == "mqtt":
        from edgeguard.records.mqttlink import MqttLink

        return MqttLink(target)
    return Link(target)
