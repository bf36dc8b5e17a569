"""A device's certificate gets old, and the uplink has it renewed: for the same key, so no key is made or moved.

The renewed one lies in the inbox, the only place where the uplink may write. It is shown as long as it fits the key and
lasts longer than the first one, which an administrator or `edgeguard enroll` put beside the key. If the collector does
not take it, the first is shown again, as long as that is good.
"""

from __future__ import annotations

import contextlib
import os

from edgeguard.codec import certificates
from edgeguard.codec.certificates import Validity
from edgeguard.errors import DecodeError
from edgeguard.records.link import Target, UplinkError, fits, refusal
from edgeguard.records.outbox import replace
from edgeguard.records.transport import Way

PATH = "/v1/renew"


def chosen(target: Target) -> Target:
    """The target with the certificate that is to be shown."""
    renewed = _validity(target.renewed)
    if renewed is None or not fits(target.renewed, target.key):
        return target
    first = _validity(target.certificate)
    if first is not None and first.ends >= renewed.ends:
        return target
    return target._replace(certificate=target.renewed)


def renew(link: Way, target: Target) -> bool:
    """Have the certificate that is shown renewed, if a third of its life or less is left. True: it was.

    Raises UplinkError where that does not work: there is still a third of its life for somebody to look.
    """
    path = chosen(target).certificate
    old = _validity(path)
    if old is None or not target.renewed or not old.due(link.judged_at):
        return False  # TLS took it: somebody else's form of certificate, which we need not understand
    reply = link.post(b"", PATH)
    if reply.status != 200:
        raise UplinkError("renewal", f"{path} ends soon and is not renewed: {refusal(reply)}")
    folder, _, name = target.renewed.rpartition("/")
    fresh = f"{folder}/.{name}.new"
    replace(fresh, reply.body)
    new = _validity(fresh)
    if new is None or not fits(fresh, target.key):
        raise UplinkError("renewal", f"{path} ends soon, and what came for it is no certificate of its key")
    if new.ends <= old.ends or not new.holds(link.judged_at):
        raise UplinkError("renewal", f"{path} ends soon, and what came for it does not last longer")
    os.replace(fresh, target.renewed)
    return True


def doubt(link: Way, target: Target) -> None:
    """The connection failed, perhaps for a renewed certificate: go back to the first, if that is still good."""
    first = _validity(target.certificate)
    if first is not None and first.holds(link.judged_at) and chosen(target) != target:
        with contextlib.suppress(OSError):
            os.unlink(target.renewed)


def _validity(path: str) -> Validity | None:
    try:
        return certificates.validity(certificates.der(certificates.read(path))) if path else None
    except (OSError, DecodeError):
        return None
