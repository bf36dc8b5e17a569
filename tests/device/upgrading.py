"""What journeys of package upgrades ask for: apt as it is run by a machine, the end of a judgement, what is open."""

from __future__ import annotations

from typing import Any

from tests.device.guard import Guard

APT = "DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0"
SPOOL = "/var/spool/edgeguard/packages"
JUDGED_S = 90.0  # from the end of apt to the judgement; ten on an idle machine
AFTER = "/usr/local/lib/after-all-that"  # is told after everything that happened before it
BY_NATURE = {"/etc/ssl/certs/ssl-cert-snakeoil.pem", "/etc/ssl/private/ssl-cert-snakeoil.key"}  # made here, new keys


def told(guard: Guard) -> str:
    """The last records, for whoever reads why a test failed."""
    return guard.ask("log -n 200").out


def judged(guard: Guard) -> None:
    """Wait until all transactions are judged, and what they held is told: a file that comes afterwards is a finding."""
    guard.device.wait(f'[ -z "$(ls -A {SPOOL})" ]', timeout=JUDGED_S)
    guard.device.run(f"echo x >{AFTER}").ok()
    finding = guard.wait_open("EG-FILE-001", AFTER, within=30)
    guard.device.run(f"rm {AFTER}").ok()
    guard.wait_resolved(finding["id"], within=30)


def apt(guard: Guard, words: str) -> None:
    guard.device.run(f"{APT} {words}", timeout=900).ok()
    judged(guard)


def opened(guard: Guard) -> dict[tuple[str, str], dict[str, Any]]:
    """All open findings by code and subject."""
    return {(f["code"], f["subject"]): f for f in guard.findings() if f["state"] == "open"}


def files(guard: Guard) -> list[dict[str, Any]]:
    """Open findings about files."""
    return [f for (code, _), f in opened(guard).items() if code.startswith(("EG-FILE", "EG-PERS", "EG-HLTH-005"))]
