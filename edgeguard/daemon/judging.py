"""What this device is judged by: the baseline in force with its file manifest, and how another comes into force.

Learning, signing and verifying happen in helpers (`baselines`); here is decided when, and what their answers mean.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from edgeguard.codec import manifest as manifests
from edgeguard.codec.digests import Algorithm
from edgeguard.codec.layers import Layers, Lookup
from edgeguard.daemon.baselines import Baselines, InForce, Refusal, Upgraded
from edgeguard.daemon.frames import watches_to_plain
from edgeguard.daemon.helpers import Helpers
from edgeguard.daemon.loop import Loop
from edgeguard.daemon.river import River
from edgeguard.daemon.status import Learning
from edgeguard.daemon.telling import Telling
from edgeguard.daemon.trouble import Trouble
from edgeguard.errors import DecodeError
from edgeguard.model import Columns, Mode
from edgeguard.settings import Settings
from edgeguard.upgrades.overlay import Notable, fingerprint

RELOOK_S = 300.0  # a helper that failed is asked again

OnWords = Callable[[dict[str, Any]], None]


class Judging:
    """Holds what is in force. `arrived` hears (the old one, the new one) when it changed as a whole."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        helpers: Helpers,
        river: River,
        telling: Telling,
        trouble: Trouble,
        arrived: Callable[[InForce | None, InForce], None],
        look_at: Callable[[str], None],
        changed: Callable[[], None],
        renewed: Callable[[], None] = lambda: None,  # packages brought other reference values for files
        masked: Callable[[str, manifests.Entry], manifests.Entry] = lambda _path, entry: entry,
    ) -> None:
        self._masked = masked
        self._renewed = renewed
        self._loop = loop
        self._settings = settings
        self._helpers = helpers
        self._river = river
        self._telling = telling
        self._trouble = trouble
        self._arrived = arrived
        self._look_at = look_at
        self._changed = changed
        self.baselines = Baselines(
            helpers, self._in_force, trouble.refused, self.no_baseline, self._failed, trouble.install_refused
        )
        self.in_force: InForce | None = None
        self.manifest: Lookup | None = None
        self.upgraded: Upgraded | None = None  # what packages brought since the baseline was signed
        self._base: manifests.Reader | None = None
        self._under = -1  # descriptor of the baseline's manifest
        self._looking = False  # a helper may have signed what packages brought, and could not tell
        self._over = -1  # descriptor of the manifest of what packages brought
        self.learning: Learning | None = None
        self.learned = False  # in this run: what changes from now on changes before our eyes

    @property
    def settled(self) -> bool:
        """Is it known what this device is judged by, or that it is not judged?"""
        return self.in_force is not None or self.learning is not None or "load" not in self._helpers.running

    @property
    def algorithm(self) -> Algorithm:
        """Of the digests that the baseline in force has of files."""
        return self._base.algorithm if self._base is not None else Algorithm.SHA256

    @property
    def mode(self) -> Mode:
        """Acts need both: the settings of this device and the signed baseline say enforce."""
        if self._settings.mode != Mode.ENFORCE.value or self.in_force is None:
            return Mode.AUDIT
        return self.in_force.baseline.mode

    # -- making the next one

    def learn(self, reason: str, on_progress: OnWords, on_done: OnWords) -> bool:
        """Learn how this device looks and sign it. False: that is going on already."""

        def progress(words: dict[str, Any]) -> None:
            total = words["total"]
            percent = min(99, words["done"] * 100 // total) if total else 0
            self.learning = Learning(percent, words["done"], words["bytes"], words["eta_s"])
            on_progress(words)
            self._changed()

        def done(answer: dict[str, Any]) -> None:
            self.learning = None
            if self._signed(answer):
                self.learned = True
                self._telling.state("learned", f"revision {answer['revision']}: {answer['files']} files")
            elif self.in_force is None:
                self._load_later()
            on_done(answer)
            self._changed()

        if not self.baselines.make("learn", {"reason": reason}, progress, done):
            return False
        self.learning = Learning(0, 0, 0, None)
        self._changed()
        return True

    def rebase(self, request: dict[str, Any], on_done: OnWords, *, look_at: str = "") -> bool:
        """Sign the next revision: policy compiled anew, references accepted or taken back. `on_done` hears when it
        is in force. `look_at`: a finding whose subject is looked at then."""
        words: dict[str, Any] = {}

        def done(answer: dict[str, Any]) -> None:
            words.update(answer)
            if self._signed(answer):
                self._telling.state("policy", f"revision {answer['revision']}: {request.get('note', '')}")
            if "revision" not in answer or "error" in answer:
                on_done(answer)

        def in_force() -> None:
            on_done(words)
            if look_at:
                self._look_at(look_at)

        return self.baselines.make("rebase", request, lambda _progress: None, done, in_force)

    def install(self, question: dict[str, Any], path: str, on_done: OnWords) -> bool:
        """Put a baseline from elsewhere in force; one that is refused is a finding, under the name of its file."""

        def done(answer: dict[str, Any]) -> None:
            if str(answer.get("code", "")).startswith("EG-BASE-"):
                self._trouble.install_refused(Refusal(path, answer["code"], answer["error"]))
            elif "error" not in answer:
                self._trouble.installed()
            on_done(answer)

        return self.baselines.make("install", question, lambda _progress: None, done)

    def _signed(self, answer: dict[str, Any]) -> bool:
        """Did a revision come of it? What the answer says of the policy is passed on."""
        if "problems" in answer:
            self._trouble.policy_wrong(answer["problems"])
            return False
        if "error" in answer:
            return False
        self._trouble.policy_right()
        return True

    def no_baseline(self, may_learn: bool) -> None:
        """Only a device that never had a baseline learns by itself: a restart must not move what it is judged by."""
        if self.in_force is not None or self.learning is not None:
            return
        if may_learn:
            self.learn("first start", lambda _progress: None, lambda _answer: None)
        else:
            self._trouble.no_baseline()
            from edgeguard.daemon import bare

            self._river.judge_bare(bare.engine())
            self._trouble.tell()
        self._changed()

    def _failed(self, verb: str, error: str) -> None:
        self._trouble.helper_failed(verb, error)
        if verb == "load":
            self._load_later()

    def _load_later(self) -> None:
        self._loop.later(RELOOK_S, self.baselines.load)

    # -- coming into force

    def _in_force(self, new: InForce) -> None:
        """A verified baseline comes into force, as a whole or not at all."""
        old = self.in_force
        if old is not None and old.digest == new.digest:
            self._trouble.image(new.image.problem if new.image is not None else "")
            self._found_upgraded(new.upgraded)
            return
        before, self._under = self._under, -1
        manifest = self._open_manifest(new)
        if new.baseline.files is not None and manifest is None:
            self._under = before
            return
        self.in_force, self._base = new, manifest
        self._trouble.judged()
        self._lay_over(new.upgraded)
        self._arrived(old, new)
        if before >= 0:  # now nobody asks it any more
            os.close(before)
        self._changed()

    def manifest_path(self, new: InForce) -> str:
        """ "" where the baseline speaks of no files."""
        files = new.baseline.files
        return f"{self._settings.paths.state}/baseline/{files.sha256.hex()}.egm" if files is not None else ""

    def _open_manifest(self, new: InForce) -> manifests.Reader | None:
        path = self.manifest_path(new)
        if not path:
            return None
        try:
            self._under = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            return manifests.Reader(self._under)  # its digest was checked by the helper that loaded the baseline
        except (OSError, DecodeError) as error:
            if self._under >= 0:
                os.close(self._under)
            self._trouble.refused([Refusal(path, "EG-BASE-006", f"file manifest: {error}")])
            return None

    # -- what packages brought since

    def packages_came(self, upgraded: Upgraded) -> None:
        """New reference values, which a helper signed, for what packages brought. They count as the baseline's."""
        files = self.in_force.baseline.files if self.in_force is not None else None
        if self.in_force is None or files is None or files.sha256 != upgraded.base:
            return  # another baseline came into force meanwhile, and has said itself what is right
        self._looking = False
        self.in_force = self.in_force._replace(upgraded=upgraded)
        self._lay_over(upgraded)
        self._renewed()

    def look_for_upgraded(self) -> None:
        """A helper that judges packages failed. It may have signed before that, and taken the manifest away that held
        until then: no sweep could open it."""
        self._looking = True
        self.baselines.load()

    def _found_upgraded(self, stored: Upgraded | None) -> None:
        if self._looking and stored is not None and stored != self.upgraded:
            self.packages_came(stored)
        self._looking = False

    def _lay_over(self, upgraded: Upgraded | None) -> None:
        before, self._over = self._over, -1
        self.manifest, self.upgraded = self._base, None
        if upgraded is not None:
            path = f"{self._settings.paths.state}/upgrades/{upgraded.sha256.hex()}.egm"
            try:
                self._over = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                self.manifest = Layers(self._base, manifests.Reader(self._over))
                self.upgraded = upgraded
            except (OSError, DecodeError) as error:
                self._trouble.manifest(error)
        if before >= 0:
            os.close(before)

    def went(self, path: str) -> bool:
        """Was this file known until a package took it away?"""
        try:
            return isinstance(self.manifest, Layers) and self.manifest.went(os.fsencode(path))
        except DecodeError as error:
            self._trouble.manifest(error)
            return False

    def superseded(self, path: str, accepted: Columns | None) -> bool:
        """Has a package changed this file since somebody accepted it like that?"""
        known = self.upgraded.superseded.get(path) if self.upgraded is not None else None
        return known is not None and known == fingerprint(accepted)

    def account(self, subject: str, known: Columns | None) -> Columns | None:
        """What holds of an account, of which the baseline says `known`: a package may have brought it since, or taken
        it away. What was said of it later than that counts."""
        since = self.upgraded.accounts.get(subject) if self.upgraded is not None else None
        return since.columns if since is not None and since.instead == fingerprint(known) else known

    def came(self, package: str) -> Notable | None:
        """What somebody should know of a package that came since, if anything."""
        notable = self.upgraded.notable if self.upgraded is not None else ()
        return next((item for item in notable if item.name == package), None)

    def notable(self) -> tuple[str, ...]:
        """The packages of which `came` says something, whatever dpkg says of them."""
        return tuple(item.name for item in self.upgraded.notable) if self.upgraded is not None else ()

    # -- what it says

    def file_reference(self, path: str) -> Columns | None:
        if self.manifest is None:
            return None
        try:
            entry = self.manifest.lookup(os.fsencode(path))
        except DecodeError as error:
            self._trouble.manifest(error)
            return None
        return self._masked(path, entry).columns(self.algorithm) if entry is not None else None

    def known_file(self, path: str) -> bool:
        references = self._river.references
        return references is not None and references.expected("file", path) is not None

    def for_sweeps(self) -> dict[str, Any]:
        """Watches and manifest in force, as a helper takes them."""
        assert self.in_force is not None
        baseline = self.in_force.baseline
        return {
            "watches": watches_to_plain(baseline.policy.watches),
            "manifest": None if baseline.files is None else [baseline.files.sha256, baseline.files.size],
            "overlay": None if self.upgraded is None else [self.upgraded.sha256, self.upgraded.size],
            "digest": self.algorithm.value,
        }
