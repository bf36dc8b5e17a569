"""The guard: the rooms, connected. An observation comes in from `sensing`, goes down the `river`, and what it changes
is told, remedied and shown from here.

Every noun below lives in a file of its own and does not know the guard; what one needs of another it is given here.
What talks to people (verbs), to systemd (main) and to the disk in bulk (helpers) is elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeguard import __version__
from edgeguard.baseline.document import References
from edgeguard.codec.manifest import Entry
from edgeguard.daemon import journal
from edgeguard.daemon.baselines import InForce
from edgeguard.daemon.differing import Differing
from edgeguard.daemon.helpers import Helpers
from edgeguard.daemon.journal import Journal
from edgeguard.daemon.judging import Judging
from edgeguard.daemon.keeping import Keeping, previous_end
from edgeguard.daemon.loop import Loop
from edgeguard.daemon.metering import Metering
from edgeguard.daemon.publish import REFRESH_S
from edgeguard.daemon.remedying import Remedying
from edgeguard.daemon.river import River
from edgeguard.daemon.rounds import Rounds
from edgeguard.daemon.sensing import Report, Sensing, now_ms
from edgeguard.daemon.sensors import Sensors
from edgeguard.daemon.showing import Showing
from edgeguard.daemon.storage import Storage
from edgeguard.daemon.telling import Telling, boot_id
from edgeguard.daemon.trouble import Trouble
from edgeguard.daemon.upgrades import Upgrades
from edgeguard.daemon.uplinks import Uplinks
from edgeguard.linux import cgroup
from edgeguard.model import Change, Columns, Mode, Observation, Origin, Severity, Transition, Watch
from edgeguard.records import compose
from edgeguard.records.registry import Clock
from edgeguard.records.spool import Spool
from edgeguard.remediations.client import Client
from edgeguard.sensors import Context
from edgeguard.sensors.actors import Actors
from edgeguard.sensors.health import Health, Reason
from edgeguard.sensors.packages import Ownership
from edgeguard.settings import Settings

AUDIT_S = 3600.0


class Guard:
    """Everything that lasts. `said` hears the verdict line whenever it may be another."""

    def __init__(self, loop: Loop, settings: Settings, settings_file: str, said: Callable[[str], None]) -> None:
        self.loop = loop
        self.settings = settings
        paths = settings.paths
        self.journal = Journal()
        self.helpers = Helpers(loop, f"{paths.libexec}/edgeguard-helper", settings_file)
        self.health = Health(Context(paths.root))
        self.actors = Actors(paths.root)
        self.ownership = Ownership(paths.root)
        self.trouble = Trouble(loop, self.health, self._record_state, self.tell_health)
        self.keeping = Keeping(loop, settings)
        self.river = River(self.keeping.ledger, self.told)
        self.telling = self._make_telling()
        self.storage = Storage(paths.state, self.telling.spool)
        self.judging = Judging(
            loop,
            settings,
            self.helpers,
            self.river,
            self.telling,
            self.trouble,
            self._in_force,
            self.look_at,
            self.changed,
            self._packages_came,
            self._masked,
        )
        self.uplinks = Uplinks(
            loop,
            settings,
            self.helpers,
            f"{paths.libexec}/edgeguard-uplink",
            self.telling.run_sealer,
            self.trouble.uplink,
        )
        self.remedying = Remedying(
            loop,
            Client(loop, paths.act_socket),
            self.keeping,
            self.telling,
            lambda: self.judging.mode,
            self.look_at,
            self.changed,
        )
        self.sensing = Sensing(loop, self.observed, self.river.standing, self._stands, self.trouble.sensor_failed)
        self.metering = Metering(loop, settings, self.telling, self.storage, self.river, self.sensing, self.trouble)
        self.rounds = Rounds(
            loop,
            settings,
            self.helpers,
            self.judging,
            self.river,
            self.keeping,
            self.sensing,
            self.telling,
            self.trouble,
            self.observed,
            self.changed,
            lambda: self.upgrades.holding,
        )
        self.upgrades = Upgrades(
            loop,
            settings,
            self.helpers,
            self.judging,
            self.river,
            self.sensing,
            self.telling,
            self.trouble,
            self.judged,
            self.rounds.compare,
            lambda: self.rounds.sweeps.running is not None,
        )
        self.sensors = Sensors(
            loop,
            settings,
            Context(
                paths.root,
                self.actors.actor_of,
                self.ownership.package_of,
                self.judging.known_file,
                self.judging.went,
                self.judging.came,
                self.judging.notable,
            ),
            self.actors,
            self.health,
            self.sensing,
            self.river,
            self.trouble,
            self.observed,
            self.rounds.look,
        )
        self.differing = Differing(
            settings,
            self._watch_of,
            lambda path: self.river.references.expected("file", path) if self.river.references else None,
            lambda seen: self.river.deviates(seen, now_ms()),
        )
        self.images: Any = None  # where baselines for images are known
        self.showing = Showing(
            loop,
            settings,
            said,
            judging=self.judging,
            river=self.river,
            sensing=self.sensing,
            rounds=self.rounds,
            telling=self.telling,
            uplinks=self.uplinks,
            storage=self.storage,
            health=self.health,
        )

    def _make_telling(self) -> Telling:
        paths = self.settings.paths
        return Telling(
            self.loop,
            Spool(f"{paths.state}/spool", f"{paths.exchange}/outbox", boot_id(), flush_s=self.settings.uplink.flush_s),
            self.helpers,
            f"{paths.libexec}/edgeguard-seal",
            lambda: Clock.NTP if self.health.clock_synchronised() else Clock.UNSET,
            self.trouble.spool,
            self._sealed,
            self.settings.uplink.heartbeat_s,
        )

    # -- life

    def start(self) -> None:
        gap = previous_end(self.settings.paths)
        self.telling.open()
        after = f", after {gap} s" if gap is not None else ""
        void = cgroup.unlimited()
        self.telling.state("start", f"edgeguardd {__version__}{after}", columns={"unlimited": void} if void else None)
        self.trouble.started(gap, self.telling.spool.damaged)
        self.trouble.fleeting(self.storage.fleeting())
        self.uplinks.open()
        self.judging.baselines.load()
        self.metering.begin()
        self._refresh()

    def stop(self) -> None:
        self.telling.state("stop", "orderly")
        self.upgrades.close()
        self.sensing.close()
        self.helpers.stop()
        self.keeping.save()
        self.telling.close()
        self.uplinks.close()
        self.showing.publish()

    def reload(self) -> None:
        """SIGHUP: compile the policy anew. `edgeguard reload` does the same and hears the answer."""
        self.judging.rebase({"policy": True, "note": "policy reloaded"}, lambda _answer: None)

    def healthy(self) -> bool:
        """For the watchdog: every sensor that has a rhythm kept it. A loop that turns but does not look is no guard."""
        return self.sensing.in_time()

    def _refresh(self) -> None:
        """Keep the clock of waivers going, and status.json valid."""
        self.river.tick(now_ms())
        self.showing.refresh()
        self.loop.later(REFRESH_S, self._refresh, slack=15.0)

    # -- a baseline comes into force

    def _in_force(self, old: InForce | None, new: InForce) -> None:
        """Judge everything anew, then let the sensors know."""
        if path := self.judging.manifest_path(new):
            self.telling.manifest = path
        if old is None:
            self.telling.run_sealer(audit=True)  # what the last run left; before the first load there may be no key
        references = References(
            new.baseline, self.judging.file_reference, self.judging.superseded, self.judging.account
        )
        for change in self.river.judge_by(new.baseline, references, now_ms(), self.judging.algorithm):
            self.told(change)
        self.telling.state("baseline installed", f"revision {new.baseline.revision} ({new.trust})")
        self._image(new)
        if old is None:
            self._start_sensors(new)
        else:
            self._renew_sensors(old, new)

    def _image(self, new: InForce) -> None:
        """Most devices are not updated by images: what only those need is not even loaded."""
        if self.images is None and new.image is None:
            return
        if self.images is None:
            from edgeguard.daemon.images import Images

            self.images = Images(self.settings.paths.state, self.helpers, self.river, self.telling, self.trouble)
            self.rounds.on_round = self.images.round_over
        self.images.arrived(new)

    def _start_sensors(self, new: InForce) -> None:
        self.sensors.start(new.baseline.policy.watches, self.judging.manifest)
        self.tell_health()
        if self.settings.mode == Mode.ENFORCE.value:
            self.remedying.recover()
        self.river.tick(now_ms())
        self.upgrades.begin()  # before the first round: what packages did while we were away is no finding
        switched = self.images is not None and self.images.switched
        if switched:
            self.sensors.relearned()  # the logs of that image are other files
        self.rounds.begin(compare=switched)
        self.sensors.prove_daily()
        self._later_audit()

    def _masked(self, path: str, entry: Entry) -> Entry:
        """A reference value of a file, as the watches in force look at such a file."""
        files: Any = self.sensing.sensor("files")
        masked: Entry = files.masked(path, entry) if files is not None else entry
        return masked

    def _renew_sensors(self, old: InForce, new: InForce) -> None:
        if old.baseline.files != new.baseline.files:
            self.sensors.relearned()
        self.sensors.renew(new.baseline.policy.watches, self.judging.manifest)
        if old.baseline.files != new.baseline.files or old.baseline.policy != new.baseline.policy:
            self.rounds.compare()
        self.sensing.look_again()

    def _packages_came(self) -> None:
        """Packages brought other files, and a helper signed what they are: judge what stands by that."""
        if self.judging.in_force is None:
            return
        baseline = self.judging.in_force.baseline
        references = References(baseline, self.judging.file_reference, self.judging.superseded, self.judging.account)
        for change in self.river.judge_by(baseline, references, now_ms(), self.judging.algorithm):
            self.told(change)
        self.sensors.refer(self.judging.manifest)

    def _later_audit(self) -> None:
        """Verify waiting segments again: one that was damaged on disk is reported before the collector asks for it."""

        def audit() -> None:
            self.telling.run_sealer(audit=True)
            self._later_audit()

        self.loop.later(AUDIT_S, audit, slack=60.0)

    # -- the river's banks

    def observed(self, observation: Observation) -> None:
        """Every observation of every sensor and sweep comes by here."""
        self.metering.observations += 1
        if not self.upgrades.holds(observation):
            self.judged(observation)

    def judged(self, observation: Observation) -> None:
        """An observation that nothing holds up."""
        now = now_ms()
        observation = self.differing.told(observation)
        self.showing.checked = now
        live = observation.origin is Origin.LIVE
        if live and observation.kind == "file":
            self.rounds.seen_live(observation)
        changes = self.river.take(observation, now)
        if changes or observation.kind in {"listener", "usb"}:
            references = self.river.references
            expected = references.expected(observation.kind, observation.subject) if references else None
            if changes or expected is None:
                self.telling.observation(observation, expected)
        if live and observation.kind == "mount":
            self.sensors.mounted(observation.subject)
        elif live and observation.kind == "health" and observation.columns.get("reason") == Reason.CLOCK_STEP.value:
            self.judging.baselines.load()  # what was not valid yet, or not any more, may be so now
        elif changes and observation.kind == "account":
            self.sensors.accounts_changed()

    def told(self, change: Change) -> None:
        """Tell everyone who must know of a change in the ledger."""
        self.keeping.plan(urgent=change.transition is not Transition.REPEATED)
        if change.transition is Transition.REPEATED:
            return
        sequence = self.telling.record(compose.finding(change, self.telling.moment()))
        self.journal.send(journal.entry(change, sequence))
        self.remedying.remedy(change)
        self.changed()
        if change.finding.severity >= Severity.HIGH:
            self.loop.later(0, self.telling.seal)

    def look_at(self, finding_id: str) -> None:
        """Look again at what a finding is about: after a remediation, and when a person asks."""
        for finding in self.river.ledger.find(finding_id):
            self.sensors.look_at(finding)

    def tell_health(self) -> None:
        """After every report to `health`: its observations flow like any other."""
        if self.health.pending and self.river.engine is not None:
            for observation in self.health.ready(now_ms()):
                self.observed(observation)
        self.changed()

    def changed(self) -> None:
        self.showing.changed()

    # -- what rooms say before all of them stand

    def _watch_of(self, path: str) -> Watch | None:
        files: Any = self.sensing.sensor("files")
        return files.watch_of(path) if files is not None else None

    def _stands(self, report: Report) -> None:
        """A sensor stands on this rung from now on. The collector hears it too: what a device cannot see is not what
        it has not got."""
        name, rung, _ladder = report
        self.health.rung(name, rung if report.works else None, "; ".join(rung.blind))
        columns: Columns = {
            "rung": rung.name,
            "proven": rung.proven,
            "blind": rung.blind,
            "tried": tuple(f"{better}: {why}" for better, why in rung.tried),
        }
        self.telling.state("sensor", f"{name}: {rung.name}", subject=f"sensor {name}", columns=columns)
        self.loop.later(0, self.tell_health)

    def _record_state(self, what: str, text: str, *, severity: Severity = Severity.INFORMATIONAL) -> None:
        self.telling.state(what, text, severity=severity)

    def _sealed(self, answer: dict[str, Any]) -> None:
        """The sealer ended: what it refused is trouble, what it made waits for the uplink."""
        self.storage.sealed(answer)
        self.trouble.sealed(answer)
        self.uplinks.sealed(answer)
        self.changed()
