"""What the journeys ask of an installed EdgeGuard: its command line and nothing else, because that is the promise."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.device.machine import Machine, Result

NOTICE_S = 2.0  # the promise: from the act to the finding
LEARN_S = 120.0  # a small root takes some seconds; a slow, shared machine much more

SLOW = 10.0  # times the host's: from there on a question costs seconds
# Waits inside, where waiting costs nothing, for the status to be written anew; ten seconds at most.
NEWS = """status=/run/edgeguard/status.json; was=$(stat -c %i%Z $status)
for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 1; [ "$(stat -c %i%Z $status)" = "$was" ] || exit 0; done
"""


# A device as it should be when EdgeGuard comes: root has a password or none works, one kernel setting that a test will
# weaken stands at its strong value, and sshd is not running (the tests write into its program file, which the kernel
# forbids while it runs).
PREPARE = """usermod -p '*' root
echo 0 >/proc/sys/net/ipv4/conf/all/accept_redirects
echo net.ipv4.conf.all.accept_redirects=0 >/etc/sysctl.d/90-device.conf
systemctl disable -q --now ssh.service ssh.socket cron.service
"""


class Guard:
    """EdgeGuard on one device. Times are the host's; a slow device gets them multiplied."""

    def __init__(self, device: Machine, *, ready: bool = False) -> None:
        self.device = device
        if not ready:
            device.run(PREPARE, timeout=60 * device.slow)

    def install(self, *packages: Path) -> Result:
        """apt from local files; the root holds all dependencies, so no network is needed."""
        names = []
        for package in packages:
            self.device.write(f"/root/{package.name}", package.read_bytes())
            names.append(f"/root/{package.name}")
        script = f"DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install {' '.join(names)}"
        return self.device.run(script, timeout=300 * min(self.device.slow, 10)).ok()

    def ask(self, words: str, *, user: str = "") -> Result:
        return self.device.run(f"edgeguard {words}", timeout=60 * self.device.slow, user=user)

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.ask("status -ojson").out)
        return document

    def learned(self, timeout: float = LEARN_S) -> dict[str, Any]:
        """The status once learning has ended."""
        deadline = time.monotonic() + timeout * self.device.slow
        answer: object = None
        while time.monotonic() < deadline:
            result = self.ask("status -ojson")
            answer = result
            try:
                document: dict[str, Any] = json.loads(result.out)
            except ValueError:
                document = {}
            if document.get("verdict") in ("OK", "WARN", "CRIT") and document.get("policy"):
                return document
            self._rest()
        raise AssertionError(f"learning did not end within {timeout} s; last answer: {answer}; {self.journal()}")

    def reload(self) -> None:
        """Policy is read anew; the answer comes when the revision is in force."""
        revision = int(self.ask("reload").ok().out.partition(":")[0].removeprefix("r"))
        assert self.status()["policy"]["revision"] == revision, self.journal()

    def findings(self, *, all_: bool = False) -> list[dict[str, Any]]:
        answer = self.ask("findings -o jsonl" + (" --all" if all_ else ""))
        assert answer.code in (0, 1, 2), answer
        return [json.loads(line) for line in answer.out.splitlines()]

    def wait_match(
        self, code: str, pattern: str, *, within: float = 10.0, states: tuple[str, ...] = ("open",)
    ) -> dict[str, Any]:
        """The finding of that code and in one of `states` whose subject matches the pattern."""

        def wanted(finding: dict[str, Any]) -> bool:
            return bool(
                finding["code"] == code and finding["state"] in states and re.fullmatch(pattern, finding["subject"])
            )

        return self._wait(wanted, within, f"an open {code} for {pattern}")

    @staticmethod
    def seconds(stamp: str) -> float:
        """Seconds since the epoch of a time as the JSON shows it."""
        return datetime.fromisoformat(stamp).timestamp()

    def wait_open(self, code: str, subject: str, *, within: float = 10.0) -> dict[str, Any]:
        """The open finding of that code and subject."""
        return self.wait_match(code, re.escape(subject), within=within)

    def wait_remedied(self, identifier: str, *, within: float = 10.0) -> dict[str, Any]:
        """The finding once something has been done about it."""
        return self._wait(lambda f: bool(f["id"] == identifier and f["remediation"]), within, f"{identifier} remedied")

    def wait_resolved(self, identifier: str, *, within: float = 10.0) -> dict[str, Any]:
        def wanted(finding: dict[str, Any]) -> bool:
            return bool(finding["id"] == identifier and finding["state"] == "resolved")

        return self._wait(wanted, within, f"{identifier} resolved")

    def _wait(self, wanted: Callable[[dict[str, Any]], bool], within: float, what: str) -> dict[str, Any]:
        within *= self.device.slow
        deadline = time.monotonic() + within
        while True:
            found = self.findings(all_=True)
            for finding in found:
                if wanted(finding):
                    return finding
            if time.monotonic() > deadline:
                shown = "\n".join(f"{f['state']} {f['code']} {f['subject']} {f['title']}" for f in found[:40])
                raise AssertionError(f"no sign of {what} within {within} s. Findings:\n{shown}\n{self.journal()}")
            self._rest()

    def _rest(self) -> None:
        """Until there may be news: asking is a program's start, and on a slow device that is what it is busy with."""
        if self.device.slow < SLOW:
            time.sleep(self.device.pause)
        else:
            self.device.run(NEWS, timeout=60 * self.device.slow)

    def journal(self) -> str:
        return self.device.run("journalctl -u 'edgeguard*' -n 30 --no-pager -o short-monotonic").out

    def settled(self, besides: str = "") -> None:
        """No open finding: each scenario starts from a quiet device. `besides`: codes that may be, as a pattern."""
        deadline = time.monotonic() + 15 * self.device.slow
        found: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            found = [finding for finding in self.findings() if finding["state"] == "open"]
            found = [finding for finding in found if not re.fullmatch(besides, finding["code"])]
            if not found:
                return
            self._rest()
        raise AssertionError(f"still open: {[(f['code'], f['subject']) for f in found]}\n{self.journal()}")
