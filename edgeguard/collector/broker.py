"""What a mosquitto needs to stand between devices and a collector: certificates of our CA, its configuration, its ACL.

The broker lets in who shows a certificate of our CA, and takes the certificate's name for the user: a device may write
below its own id and read its own answers, the collector the other way round, and nobody anything else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from edgeguard.collector import authority
from edgeguard.records import mqttwire, wire
from edgeguard.records.mqttclient import PACKET_ALLOWED

PLACE = "/etc/mosquitto/edgeguard"
USER = "edgeguard-collector"  # of the collector at the broker
CONF = f"""\
# For /etc/mosquitto/conf.d. mosquitto 2.0 and later; more: docs/mqtt.md of EdgeGuard.
listener 8883
cafile {PLACE}/ca.pem
certfile {PLACE}/broker.pem
keyfile {PLACE}/broker.key
require_certificate true
use_identity_as_username true
allow_anonymous false
acl_file {PLACE}/acl
retain_available false
# A body of records and what MQTT adds; devices with MQTT 5 are told so, and send smaller ones where this is less.
max_packet_size {wire.SEGMENT_MAX + 2 * PACKET_ALLOWED}
# What may wait for a collector that is slow. Devices send again whatever has no receipt.
max_queued_messages 1000
max_queued_bytes 67108864
"""
ROOT = mqttwire.ROOT
ACL = f"""\
# A device: user is the name in its certificate, which is its id.
pattern write {ROOT}/%u/{mqttwire.UP}
pattern write {ROOT}/%u/{mqttwire.RENEW}
pattern read {ROOT}/%u/{mqttwire.RX}

user {USER}
topic read {ROOT}/+/{mqttwire.UP}
topic read {ROOT}/+/{mqttwire.RENEW}
topic write {ROOT}/+/{mqttwire.RX}
"""


def create(directory: str, target: str, hosts: Sequence[str]) -> None:
    """The broker's files in `target`, and the collector's certificate for it beside its own. FileExistsError: where
    `target` is there already; a certificate of the collector that is there stays."""
    authority.broker(directory, target, hosts)
    if not os.path.exists(os.path.join(directory, "mqtt.pem")):
        authority.client(directory, USER, os.path.join(directory, "mqtt"))
    for name, text in (("mosquitto.conf", CONF), ("acl", ACL)):
        with open(os.path.join(target, name), "x", encoding="ascii") as file:
            file.write(text)
