"""The guard: the rooms, connected. An observation comes in from `sensing`, goes down the `river`, and what it changes
is told, remedied and shown from here.

What talks to people (verbs), to systemd (main) and to the disk in bulk (helpers) is elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from edgeguard import __version__
from edgeguard.baseline.document import References
from edgeguard.codec import manifest as manifests
from edgeguard.daemon import journal
from edgeguard.daemon.baselines import Baselines, InForce, Refusal
from edgeguard.daemon.frames import watches_to_plain
from edgeguard.daemon.helpers import Helpers
from edgeguard.daemon.journal import Journal
from edgeguard.daemon.loop import Loop, Timer
from edgeguard.daemon.publish import REFRESH_S, publish, replace_file, status_line
from edgeguard.daemon.river import River
from edgeguard.daemon.sensing import Sensing, now_ms
from edgeguard.daemon.status import Facts, Learning, document
from edgeguard.daemon.sweeps import Request, Sweeps, adopt
from edgeguard.daemon.telling import Telling, boot_ms
from edgeguard.daemon.uplinks import Uplinks
from edgeguard.errors import DecodeError
from edgeguard.evaluate.ledger import Ledger
from edgeguard.model import Change, Columns, Mode, Observation, Origin, Severity, Transition
from edgeguard.records import compose
from edgeguard.records.registry import Clock, Stream
from edgeguard.records.spool import Spool
from edgeguard.remediations import ActRequest, Reply
from edgeguard.remediations.client import Client
from edgeguard.remediations.plan import plan
from edgeguard.sensors import Context
from edgeguard.sensors.actors import Actors
from edgeguard.sensors.health import Health, Reason
from edgeguard.sensors.packages import Ownership
from edgeguard.settings import Settings

GAP_S = 90  # seconds; status.json is written once a minute, so less says nothing
LEDGER_SOON_S = 0.5  # after a change; findings themselves are durable as records at once
LEDGER_LATER_S = 300.0  # after a mere repetition, and after the disk did not take it
PUBLISH_WAIT_S = 0.1  # several changes make one status
AUDIT_S = 3600.0
LIVE_FILES_MAX = 4096
DAY_S = 86_400.0
REMARK_S = 0.5  # mounts come in groups
RELOOK_S = 300.0  # a helper that failed is asked again
SNAPSHOTS = ("listeners", "usb", "host", "accounts", "packages", "health")


class Guard:
    """Everything that lasts. `changed` hears the verdict line whenever it may be another."""

    def __init__(self, loop: Loop, settings: Settings, settings_file: str, changed: Callable[[str], None]) -> None:
        self.loop = loop
        self.settings = settings
        self._changed = changed
        paths = settings.paths
        self.started = now_ms()
        self.journal = Journal()
        self.helpers = Helpers(loop, f"{paths.libexec}/edgeguard-helper", settings_file)
        self.health = Health(Context(paths.root))
        self.actors = Actors(paths.root)
        self.ownership = Ownership(paths.root)
        self.river = River(self._load_ledger(), self.told)
        self.telling = Telling(
            loop,
            Spool(f"{paths.state}/spool", f"{paths.exchange}/outbox", boot_id(), flush_s=settings.uplink.flush_s),
            self.helpers,
            f"{paths.libexec}/edgeguard-seal",
            lambda: Clock.NTP if self.health.clock_synchronised() else Clock.UNSET,
            self._spool_trouble,
            self._sealed,
        )
        self.baselines = Baselines(self.helpers, self._in_force, self._refused, self._no_baseline, self._helper_failed)
        self.sweeps = Sweeps(
            self.helpers,
            self._found_by_sweep,
            self._swept,
            lambda error: self._helper_failed("sweep", error),
            self._judged_by,
        )
        self.uplinks = Uplinks(
            loop,
            settings,
            self.helpers,
            f"{paths.libexec}/edgeguard-uplink",
            self.telling.run_sealer,
            self._uplink_trouble,
        )
        self.act = Client(loop, paths.act_socket)
        self.context = Context(paths.root, self.actors.actor_of, self.ownership.package_of, self._known_file)
        self.sensing = Sensing(loop, self.observed, self.standing, self._rung, self._sensor_failed)
        self.in_force: InForce | None = None
        self.manifest: manifests.Reader | None = None
        self.learning: Learning | None = None
        self.checked: int | None = None
        self.files_checked: int | None = None
        self.waiting = 0  # sealed segments without a receipt
        self._first_seal = True  # the next answer of the sealer is the first
        self._sequence = 0  # newest record of stream 0
        self._publish_timer: Timer | None = None
        self._save_timer: Timer | None = None
        self._remark_timer: Timer | None = None
        self._mounted: dict[str, None] = {}  # since the last remark
        self._nonce = 0
        self._cpu = (time.process_time(), time.monotonic())
        self._cpu_percent: float | None = None
        self._refused_subjects: set[str] = set()
        self._refused_installs: set[str] = set()
        self._look_when_in_force: list[str] = []  # findings
        self._live_files: dict[str, int] = {}  # seen live since the running sweep began: path -> ms

    # -- life

    def start(self) -> None:
        gap = previous_end(self.settings.paths)
        self.telling.open()
        self.telling.state("start", f"edgeguardd {__version__}" + (f", after {gap} s" if gap is not None else ""))
        self._report_start(gap)
        self.uplinks.open()
        self.baselines.load()
        self._refresh()

    def _report_start(self, gap: int | None) -> None:
        """What the time before this start left to tell. A device that was switched off was not unwatched."""
        if gap is not None and GAP_S < gap < time.clock_gettime(time.CLOCK_BOOTTIME):
            text = f"nothing was watched for up to {gap} s, while the device was on"
            self.health.report(Reason.NOT_RUNNING, "gap", text, now=now_ms())
        for name in self.telling.spool.damaged:
            text = "it could not be read; the records in it are lost"
            self.health.report(Reason.SEGMENT_SET_ASIDE, f"spool {name}", text, now=now_ms())

    def stop(self) -> None:
        self._record_state("stop", "orderly")
        self.sensing.close()
        self.helpers.stop()
        self._save_ledger()
        self.telling.close()
        self.uplinks.close()
        self.publish()

    def reload(self) -> None:
        """SIGHUP: compile the policy anew. `edgeguard reload` does the same and hears the answer."""
        self.rebase({"policy": True, "note": "policy reloaded"}, lambda _answer: None)

    def healthy(self) -> bool:
        """For the watchdog: every sensor that has a rhythm kept it. A loop that turns but does not look is no guard."""
        return self.sensing.in_time()

    def bug(self, where: str, error: Exception) -> None:
        """A defect of ours, told in full where an engineer looks."""
        import traceback

        text = "".join(traceback.format_exception(error))
        sys.stderr.write(f"edgeguardd: bug in {where}: {text}\n")

    # -- baseline

    @property
    def settled(self) -> bool:
        """Is it known what this device is judged by, or that it is not judged?"""
        return self.in_force is not None or self.learning is not None or "load" not in self.helpers.running

    def _no_baseline(self, may_learn: bool) -> None:
        """Only a device that never had a baseline learns by itself: a restart must not move what it is judged by."""
        if self.in_force is not None or self.learning is not None:
            return
        if may_learn:
            self.learn("first start", lambda _progress: None, lambda _answer: None)
        else:
            self.health.report(Reason.BASELINE_REFUSED, "baseline", "no valid baseline: this device is not judged")
            from edgeguard.daemon import bare

            self.river.judge_bare(bare.engine())
            self.tell_health()
        self.changed()

    def learn(
        self, reason: str, on_progress: Callable[[dict[str, Any]], None], on_done: Callable[[dict[str, Any]], None]
    ) -> bool:
        """Learn how this device looks and sign it. False: that is going on already."""

        def progress(words: dict[str, Any]) -> None:
            total = words["total"]
            percent = min(99, words["done"] * 100 // total) if total else 0
            self.learning = Learning(percent, words["done"], words["bytes"], words["eta_s"])
            on_progress(words)
            self.changed()

        def done(answer: dict[str, Any]) -> None:
            self.learning = None
            if "problems" in answer:
                self._policy_wrong(answer["problems"])
            elif "error" not in answer:
                self._policy_right()
                self._record_state("learned", f"revision {answer['revision']}: {answer['files']} files")
            if ("error" in answer or "problems" in answer) and self.in_force is None:
                self.loop.later(RELOOK_S, self.baselines.load)
            on_done(answer)
            self.changed()

        if not self.baselines.make("learn", {"reason": reason}, progress, done):
            return False
        self.learning = Learning(0, 0, 0, None)
        self.changed()
        return True

    def rebase(self, request: dict[str, Any], on_done: Callable[[dict[str, Any]], None], *, look_at: str = "") -> bool:
        """Sign the next revision: policy compiled anew, references accepted or taken back. `look_at`: a finding whose
        subject is looked at when the revision is in force."""

        def done(answer: dict[str, Any]) -> None:
            if "problems" in answer:
                self._policy_wrong(answer["problems"])
            elif "error" not in answer:
                self._policy_right()
                self._record_state("policy", f"revision {answer['revision']}: {request.get('note', '')}")
                if look_at:
                    self._look_when_in_force.append(look_at)
            on_done(answer)

        return self.baselines.make("rebase", request, lambda _progress: None, done)

    def install(self, question: dict[str, Any], path: str, on_done: Callable[[dict[str, Any]], None]) -> bool:
        """Put a baseline from elsewhere in force; one that is refused is a finding, under the name of its file."""

        def done(answer: dict[str, Any]) -> None:
            if str(answer.get("code", "")).startswith("EG-BASE-"):
                self._refuse(Refusal(path, answer["code"], answer["error"]))
                self._refused_installs.add(path)
            elif "error" not in answer:
                for refused in self._refused_installs:  # whoever was to install one has installed one
                    self.health.clear(f"baseline {refused}")
                self._refused_installs.clear()
                self.tell_health()
            on_done(answer)

        return self.baselines.make("install", question, lambda _progress: None, done)

    def _in_force(self, new: InForce) -> None:
        """A verified baseline comes into force: swap it whole, judge everything anew."""
        old = self.in_force
        if old is not None and old.digest == new.digest:
            return
        manifest = self._open_manifest(new)
        if new.baseline.files is not None and manifest is None:
            return
        self.in_force, self.manifest = new, manifest
        if new.baseline.files is not None:
            self.telling.manifest = f"{self.settings.paths.state}/baseline/{new.baseline.files.sha256.hex()}.egm"
        if old is None:
            self.telling.run_sealer(audit=True)  # what the last run left; before the first load there may be no key
        references = References(new.baseline, self._file_reference)
        for change in self.river.judge_by(new.baseline, references, now_ms()):
            self.told(change)
        self._record_state("baseline installed", f"revision {new.baseline.revision} ({new.trust})")
        if old is None:
            self._start_sensors()
        else:
            self._renew_sensors(old)
        findings, self._look_when_in_force = self._look_when_in_force, []
        for finding in findings:
            self.look_at(finding)
        self.changed()

    def _open_manifest(self, new: InForce) -> manifests.Reader | None:
        if new.baseline.files is None:
            return None
        path = f"{self.settings.paths.state}/baseline/{new.baseline.files.sha256.hex()}.egm"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            return manifests.Reader(fd)  # its digest was checked by the helper that loaded the baseline
        except (OSError, DecodeError) as error:
            self._refused([Refusal(path, "EG-BASE-006", f"file manifest: {error}")])
            return None

    def _file_reference(self, path: str) -> Columns | None:
        if self.manifest is None:
            return None
        try:
            entry = self.manifest.lookup(os.fsencode(path))
        except DecodeError as error:
            self.health.report(Reason.BASELINE_REFUSED, "baseline", f"file manifest: {error}", now=now_ms())
            return None
        return entry.columns() if entry is not None else None

    def _known_file(self, path: str) -> bool:
        references = self.river.references
        return references is not None and references.expected("file", path) is not None

    def _refused(self, refusals: list[Refusal]) -> None:
        """What the store refused at this load; a file that is not refused any more is no problem any more."""
        standing = {f"baseline {refusal.name}" for refusal in refusals}
        for subject in self._refused_subjects - standing:
            self.health.clear(subject)
        self._refused_subjects = standing
        for refusal in refusals:
            self._refuse(refusal)
        self.tell_health()

    def _refuse(self, refusal: Refusal) -> None:
        subject = f"baseline {refusal.name}"
        self.health.report(Reason.BASELINE_REFUSED, subject, refusal.text, code=refusal.code, now=now_ms())
        self._record_state("baseline refused", f"{refusal.name}: {refusal.text}", severity=Severity.HIGH)
        self.tell_health()

    def _policy_wrong(self, problems: list[str]) -> None:
        text = problems[0] if len(problems) == 1 else f"{problems[0]} (and {len(problems) - 1} more)"
        self.health.report(Reason.POLICY_WRONG, "policy", text, now=now_ms())
        self.tell_health()

    def _policy_right(self) -> None:
        self.health.clear("policy")
        self.tell_health()

    # -- sensors

    def _start_sensors(self) -> None:
        assert self.in_force is not None
        from edgeguard.daemon.sensors import start_sensors

        start_sensors(self)
        self.tell_health()
        if self.settings.mode == Mode.ENFORCE.value:
            # What a power cut left half done is finished or taken back before anything new is begun.
            self.act.send(ActRequest("recover", "", self._next_nonce()), lambda _request, _reply: None)
        for change in self.river.ledger.tick(now_ms()):
            self.told(change)
        fresh = not os.path.exists(f"{self.settings.paths.state}/observed.db")
        self.sweeps.ask(Request(Origin.DOWN if not fresh else Origin.SWEEP, compare=self.ledger_lost))
        self._later_sweep()
        self.loop.later(DAY_S, self.prove_sensors, slack=3600.0)
        self._later_audit()

    def _later_audit(self) -> None:
        """Verify waiting segments again: one that was damaged on disk is reported before the collector asks for it."""

        def audit() -> None:
            self.telling.run_sealer(audit=True)
            self._later_audit()

        self.loop.later(AUDIT_S, audit, slack=60.0)

    def _renew_sensors(self, old: InForce) -> None:
        assert self.in_force is not None
        from edgeguard.daemon.sensors import renew

        renew(self)
        if old.baseline.files != self.in_force.baseline.files or old.baseline.policy != self.in_force.baseline.policy:
            self.sweeps.ask(Request(Origin.SWEEP, compare=True))
        self.sensing.look_again()

    def _later_sweep(self) -> None:
        every = float(self.settings.budget.sweep_s)

        def sweep() -> None:
            self.sweeps.ask(Request(Origin.SWEEP))
            self._later_sweep()

        self.loop.later(every, sweep, slack=60.0)

    def _judged_by(self) -> dict[str, Any]:
        assert self.in_force is not None
        baseline = self.in_force.baseline
        return {
            "watches": watches_to_plain(baseline.policy.watches),
            "manifest": None if baseline.files is None else [baseline.files.sha256, baseline.files.size],
        }

    def _swept(self, request: Request, answer: dict[str, Any]) -> None:
        self._live_files.clear()
        summary = answer.get("summary")
        if summary is None:
            self.loop.later(RELOOK_S, lambda: self.sweeps.ask(request.again()))
            return
        if summary["written"]:
            self._adopt_swept()
        self.helper_well("sweep")
        if not request.targets:
            self._look_at_open_files()
        if not request.targets:
            self.files_checked = now_ms()
            self._record_state("sweep", f"{summary['files']} files, {summary['emitted']} changed")
        self.changed()

    def _adopt_swept(self) -> None:
        """Keep the findings first: after a kill in between, the next sweep tells all of it again."""
        with contextlib.suppress(OSError):  # then it is told again, too
            if self._save_ledger():
                adopt(self.settings.paths.state)

    def _found_by_sweep(self, observation: Observation) -> None:
        """What the sensor handed to a helper comes back here; it still knows who did it."""
        files: Any = self.sensing.sensor("files")
        if files is None:
            self.observed(observation)
        elif self._live_files.get(observation.subject, 0) >= observation.at:
            # It changed after the sweep began: what the sweep saw may be from before, so look now.
            self.observed(files.observe_path(observation.subject, now_ms()))
        else:
            self.observed(files.attribute(observation))

    def _look_at_open_files(self) -> None:
        """A sweep tells what differs from the last one. What came and went between two looks of ours is not there to
        be told: so every finding about a file is looked at again."""
        if subjects := tuple(self.standing("file")):
            self.sweeps.ask(Request(Origin.SWEEP, targets=subjects))

    def prove_sensors(self) -> None:
        """Once a day: does the rung that we stand on still carry?"""
        files: Any = self.sensing.sensor("files")
        if files is not None:
            if files.proves_itself():
                self.health.clear("sensor files")
            else:
                self.health.report(Reason.SENSOR_BLIND, "sensor files", "its own event did not arrive", now=now_ms())
            self.tell_health()
        self.loop.later(DAY_S, self.prove_sensors, slack=3600.0)

    def _rung(self, name: str, rung: Any) -> None:
        self.health.rung(name, rung)

    def _sensor_failed(self, name: str, error: Exception) -> None:
        """Something that a sensor cannot cope with: told, and the others go on."""
        if not isinstance(error, OSError):
            self.bug(f"sensor {name}", error)
        self.health.report(Reason.SENSOR_FAILED, f"sensor {name}", f"{type(error).__name__}: {error}", now=now_ms())
        self.loop.later(0, self.tell_health)

    def standing(self, kind: str) -> Iterator[str]:
        """Subjects of a kind that have a live finding."""
        ledger = self.river.ledger
        return iter({f.subject for f in (*ledger.open(), *ledger.suppressed()) if f.kind == kind})

    # -- the river's banks

    def observed(self, observation: Observation) -> None:
        """Every observation of every sensor and sweep comes by here."""
        now = now_ms()
        self.checked = now
        live_file = observation.kind == "file" and observation.origin is Origin.LIVE
        # Beyond the bound, the next sweep puts right what this one tells late.
        if live_file and self.sweeps.running is not None and len(self._live_files) < LIVE_FILES_MAX:
            self._live_files[observation.subject] = observation.at
        changes = self.river.take(observation, now)
        if changes or observation.kind in {"listener", "usb"}:
            references = self.river.references
            expected = references.expected(observation.kind, observation.subject) if references else None
            if changes or expected is None:
                self._record(compose.observation(observation, self.telling.moment(), expected))
        if observation.kind == "mount" and observation.origin is Origin.LIVE:
            self._mounts_changed(observation.subject)

    def _mounts_changed(self, point: str) -> None:
        self._mounted[point] = None
        if self._remark_timer is None:
            self._remark_timer = self.loop.later(REMARK_S, self._remark)

    def _remark(self) -> None:
        from edgeguard.daemon.sensors import remark

        self._remark_timer = None
        points, self._mounted = self._mounted, {}
        if targets := remark(self, points):  # what was there before we watched
            self.sweeps.ask(Request(Origin.SWEEP, targets=targets))
        if any(point.startswith(("/etc", "/root", "/home")) for point in points):
            for name in ("accounts", "host"):  # a file mounted over /etc/passwd changes it, and no event tells
                self.sensing.look(name)

    def told(self, change: Change) -> None:
        """Tell everyone who must know of a change in the ledger."""
        self._plan_save(urgent=change.transition is not Transition.REPEATED)
        if change.transition is Transition.REPEATED:
            return
        finding = change.finding
        sequence = self._record(compose.finding(change, self.telling.moment()))
        self.journal.send(journal.entry(change, sequence))
        self._remedy(change)
        self.changed()
        if finding.severity >= Severity.HIGH:
            self.loop.later(0, self.telling.seal)

    def tell_health(self) -> None:
        """After every report to `health`: its observations flow like any other."""
        if self.health.pending and self.river.engine is not None:
            for observation in self.health.ready(now_ms()):
                self.observed(observation)
        self.changed()

    def _record(self, record: Any) -> int:
        sequence = self.telling.record(record)
        if record.stream == Stream.FINDINGS and sequence:
            self._sequence = sequence
        return sequence

    def _record_state(self, what: str, text: str, **more: Any) -> None:
        self._sequence = self.telling.state(what, text, **more) or self._sequence

    # -- remediations

    @property
    def mode(self) -> Mode:
        if self.settings.mode != Mode.ENFORCE.value or self.in_force is None:
            return Mode.AUDIT
        return self.in_force.baseline.mode

    def _remedy(self, change: Change) -> None:
        request = plan(change, self.mode, self._next_nonce())
        if request is not None:
            self._save_ledger()  # edgeguard-act reads the finding there
            self.act.send(request, self._acted)

    def _next_nonce(self) -> int:
        self._nonce += 1
        return self._nonce

    def undo(self, finding: str, on_reply: Callable[[ActRequest, Reply], None]) -> None:
        self._save_ledger()
        self.act.send(ActRequest("undo", finding, self._next_nonce()), on_reply)

    def undone(self, finding: str, reply: Reply, owner: str) -> None:
        text = f"undo by {owner}: {reply.state}" + (f", {reply.detail}" if reply.detail else "")
        self._record_state("undo", text, finding=finding)
        if reply.ok:
            self.river.ledger.annotate(finding, f"undone: {reply.detail}")
            self._plan_save(urgent=True)
        self.look_at(finding)

    def _acted(self, request: ActRequest, reply: Reply) -> None:
        text = f"{request.verb}: {reply.state}" + (f", {reply.detail}" if reply.detail else "")
        self.river.ledger.annotate(request.finding, text)
        severity = Severity.INFORMATIONAL if reply.ok else Severity.MEDIUM
        self._record_state("remediation", text, finding=request.finding, severity=severity)
        self._plan_save(urgent=True)
        if reply.retry_s:
            self.loop.later(reply.retry_s, lambda: self._try_again(request))
        self.look_at(request.finding)
        self.changed()

    def _try_again(self, request: ActRequest) -> None:
        if any(finding.id == request.finding for finding in self.river.ledger.open()):
            self._save_ledger()
            self.act.send(request._replace(nonce=self._next_nonce()), self._acted)

    def look_at(self, finding_id: str) -> None:
        """Look again at what a finding is about: after a remediation, and when a person asks."""
        for finding in self.river.ledger.find(finding_id):
            if finding.kind == "file":
                files = self.sensing.sensor("files")
                if files is not None:
                    self.observed(files.observe_path(finding.subject, now_ms()))  # type: ignore[attr-defined]  # only the files sensor looks at one path
            else:
                for name in SENSOR_OF.get(finding.kind, ()):
                    self.sensing.look(name)

    # -- trouble

    def _helper_failed(self, verb: str, error: str) -> None:
        reason = Reason.HELPER_TIMEOUT if "too long" in error else Reason.HELPER_FAILED
        self.health.report(reason, f"helper {verb}", error, now=now_ms())
        self._record_state("helper failed", f"{verb}: {error}", severity=Severity.MEDIUM)
        if verb == "load":
            self.loop.later(RELOOK_S, self.baselines.load)
        self.tell_health()

    def helper_well(self, verb: str) -> None:
        self.health.clear(f"helper {verb}")
        self.tell_health()

    def _spool_trouble(self, subject: str, detail: str) -> None:
        if detail:
            self.health.report(Reason.SPOOL_ERROR, subject, detail, now=now_ms())
        else:
            self.health.clear(subject)
        self.loop.later(0, self.tell_health)

    def _uplink_trouble(self, detail: str) -> None:
        if detail:
            self.health.report(Reason.UPLINK_FAILING, "uplink", detail, now=now_ms())
        else:
            self.health.clear("uplink")
        self.tell_health()

    def _sealed(self, answer: dict[str, Any]) -> None:
        """The sealer ended: what it made waits for the uplink, what it refused is reported by name."""
        if "error" in answer:
            self._helper_failed("seal", answer["error"])
        else:
            self.helper_well("seal")
        for row in answer.get("quarantined", []):
            self.health.report(Reason.SEGMENT_SET_ASIDE, f"segment {row['name']}", str(row["why"]), now=now_ms())
        self.waiting = answer.get("waiting", self.waiting)
        if answer.get("full"):
            self.health.report(Reason.SPOOL_FULL, "outbox", "sealed records fill their quota", now=now_ms())
        elif "error" not in answer:
            self.health.clear("outbox")
        for problem in answer.get("problems", []):
            self.health.report(Reason.UPLINK_FAILING, "receipts", str(problem), now=now_ms())
        if not answer.get("problems") and answer.get("receipt"):
            self.health.clear("receipts")
        self.loop.later(0, self.tell_health)
        if answer.get("sealed") or (self.waiting and self._first_seal and "error" not in answer):
            self._first_seal = False  # what a run before this one sealed and nobody sent
            self.uplinks.ring()
        self.changed()

    # -- showing

    def changed(self) -> None:
        """Something that status shows may be another: publish soon, once."""
        if self._publish_timer is None:
            self._publish_timer = self.loop.later(PUBLISH_WAIT_S, self.publish)

    def publish(self) -> None:
        self._publish_timer = None
        status = self.status()
        publish(self.settings.paths.runtime, status)
        self._changed(status_line(status))

    def _refresh(self) -> None:
        """Keep status.json valid, and the clock of waivers going."""
        now_cpu, now_mono = time.process_time(), time.monotonic()
        cpu, mono = self._cpu
        if now_mono - mono > REFRESH_S / 2:  # of the start alone it would be no figure to judge by
            self._cpu_percent = round(100 * (now_cpu - cpu) / (now_mono - mono), 2)
            self._cpu = (now_cpu, now_mono)
        self.river.tick(now_ms())
        self.publish()
        self.loop.later(REFRESH_S, self._refresh, slack=15.0)

    def status(self) -> dict[str, Any]:
        uplink = self.uplinks.status
        force = self.in_force
        configured = self.uplinks.configured
        facts = Facts(
            name=self.settings.name or socket.gethostname(),
            fleet=self.settings.fleet,
            now=now_ms(),
            started=self.started,
            checked=self.checked,
            files_watched=force.baseline.files.entries if force and force.baseline.files else 0,
            files_checked=self.files_checked,
            counts=self.counts(),
            packages_incomplete=sum(finding.kind == "package" for finding in self.river.ledger.open()),
            packages_changed=self._packages_changed(),
            sequence=self._sequence,
            log_since=None,
            log_error=self.telling.error,
            uplink_state="OFF" if not configured else "OK" if uplink.ok else "WARN",
            uplink_waiting=self.waiting,
            uplink_last=uplink.last_sent,
            uplink_error=uplink.error,
            clock_synchronised=self.health.clock_synchronised(),
            trust=force.trust if force else "local",
            signer=force.signer if force else "",
            mode=self.mode.value,
            learning=self.learning,
            problems=tuple(self.health.problems()),
            cpu_percent=self._cpu_percent,
        )
        return document(facts, self.river.ledger, force.baseline if force else None)

    def counts(self) -> dict[str, int]:
        processes = self.sensing.sensor("processes")
        running = getattr(processes, "running", 0)
        return {**self.sensing.counts, "process": running() if callable(running) else running}

    def _packages_changed(self) -> int | None:
        try:
            return os.stat(f"{self.settings.paths.root}/var/lib/dpkg/status").st_mtime_ns // 1_000_000
        except OSError:
            return None

    # -- the ledger on disk

    ledger_lost = False

    def _load_ledger(self) -> Ledger:
        path = f"{self.settings.paths.state}/ledger.cbor"
        try:
            with open(path, "rb") as file:
                return Ledger.from_cbor(file.read(), self.settings.budget.findings_max)
        except FileNotFoundError:
            pass
        except (OSError, DecodeError) as error:
            # Not fatal: everything is compared with the baseline again, so every deviation is found again.
            sys.stderr.write(f"edgeguardd: {path}: {error}; findings are found anew\n")
        self.ledger_lost = True
        return Ledger(self.settings.budget.findings_max)

    def _plan_save(self, *, urgent: bool) -> None:
        wait = LEDGER_SOON_S if urgent else LEDGER_LATER_S
        if self._save_timer is not None:
            if not urgent or self._save_timer.due <= time.monotonic() + wait:
                return
            self._save_timer.cancel()
        self._save_timer = self.loop.later(wait, self._save_ledger)

    def _save_ledger(self) -> bool:
        """False: the disk does not take it. The spool says so, and its records hold the findings meanwhile."""
        if self._save_timer is not None:
            self._save_timer.cancel()
            self._save_timer = None
        try:
            replace_file(f"{self.settings.paths.state}/ledger.cbor", self.river.ledger.to_cbor(), 0o600)
        except OSError:
            self._plan_save(urgent=False)
            return False
        return True


SENSOR_OF = {
    "listener": ("listeners",),
    "process": ("processes",),
    "usb": ("usb",),
    "sysctl": ("host",),
    "module": ("host",),
    "mount": ("host",),
    "sshd": ("host",),
    "account": ("accounts",),
    "authorized_key": ("accounts",),
    "package": ("packages",),
    "health": ("health",),
}


def boot_id() -> bytes:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return bytes.fromhex(file.read().strip().replace("-", ""))
    except (OSError, ValueError):
        return (now_ms() - boot_ms()).to_bytes(16, "big")


def previous_end(paths: Any) -> int | None:
    """Seconds since a daemon last kept its ledger or status, None if there never was one."""
    times = []
    for path in (f"{paths.state}/ledger.cbor", f"{paths.runtime}/status.json"):
        with contextlib.suppress(OSError):
            times.append(os.stat(path).st_mtime)
    return max(0, int(time.time() - max(times))) if times else None
