"""Accounts that come and go with packages: what a real helper explains of them, and what it does not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from edgeguard.baseline.document import Baseline, References
from edgeguard.codec.values import columns_to_plain
from edgeguard.daemon.baselines import upgraded
from edgeguard.daemon.judging import Judging
from edgeguard.errors import DecodeError
from edgeguard.model import Columns
from edgeguard.upgrades import overlay
from edgeguard.upgrades.kinds import BY_DPKG, BY_OTHERS, BY_UNKNOWN
from edgeguard.upgrades.overlay import Account, Overlay
from tests.unit.daemon.test_upgrading import World, needs_dpkg
from tests.unit.upgrades.debs import deb as build

pytestmark = needs_dpkg
PASSWD = "root:x:0:0::/root:/bin/sh\nbroker:x:112:118::/var/lib/broker:/usr/sbin/nologin\n"
GROUP = "root:x:0:\nbroker:x:118:\n"
POSTINST = '#!/bin/sh\nUSER=broker\nadduser --system --group --home /var/lib/broker "$USER"\n'
SYSUSERS = "/usr/lib/sysusers.d/broker.conf"
DECLARED = "u broker - - /var/lib/broker\n"
USER: Columns = {
    "uid": 112,
    "gid": 118,
    "home": "/var/lib/broker",
    "shell": "/usr/sbin/nologin",
    "password": "locked",
    "members": (),
}
POLICY: Any = None  # what is judged by is none of this
GROUP_ROW: Columns = {**dict.fromkeys(USER), "gid": 118, "password": "locked", "members": ()}


class Broker(World):
    """A device on which package `broker` comes or goes."""

    def __init__(self, top: Path) -> None:
        super().__init__(top)
        self.accounts(PASSWD, GROUP)

    def accounts(self, passwd: str, group: str) -> None:
        (self.root / "etc/passwd").write_text(passwd)
        (self.root / "etc/group").write_text(group)

    def brought(
        self, *, postinst: str = "", files: dict[str, str] | None = None, vouched: bool = True, installed: bool = True
    ) -> str:
        path = build(self.top, "broker", "1", {"/usr/bin/broker": "x\n", **(files or {})}, postinst=postinst)
        self.trust(*self.debs.values(), *([path] if vouched else []))
        name = self.transaction(path, self.debs["3"], before={"tool": "2"})
        assert self.ask("prepare", {"transactions": [name]})["prepared"] == name
        self.install(self.debs["3"])  # another one that comes, whatever becomes of this one
        if installed:
            self.install(path)
        return name

    def explained(self, name: str, *rows: tuple[str, int, Columns | None], **more: Any) -> dict[str, Any]:
        accounts = [[subject, maker, columns and columns_to_plain(columns)] for subject, maker, columns in rows]
        request = {"transactions": [name], "held": [], "accounts": accounts, **self.judged_by(), **more}
        self.last = self.ask("explain", request)
        over = upgraded(self.last["overlay"])
        assert over is not None
        return {subject: account.columns for subject, account in over.accounts.items()}


@pytest.fixture
def world(tmp_path: Path) -> Broker:
    return Broker(tmp_path)


@pytest.mark.parametrize("maker", [BY_DPKG, BY_UNKNOWN])
@pytest.mark.parametrize("how", ["script", "sysusers"])
def test_an_account_that_a_signed_package_makes_is_known_from_then_on(world: Broker, how: str, maker: int) -> None:
    name = world.brought(**({"postinst": POSTINST} if how == "script" else {"files": {SYSUSERS: DECLARED}}))  # type: ignore[arg-type]
    rows = (("user broker", maker, USER), ("group broker", maker, GROUP_ROW))
    assert world.explained(name, *rows) == {"user broker": USER, "group broker": GROUP_ROW}
    (text,) = [package["text"] for package in world.last["packages"] if package["name"] == "broker"]
    assert text.endswith(", group broker, user broker")


@pytest.mark.parametrize(
    "how",
    ["another name", "by another", "nobody vouches", "not installed", "a shell", "a number of another", "said in words",
     "declared otherwise", "in no transaction"],
)  # fmt: skip
def test_what_no_signed_package_makes_is_not(world: Broker, how: str) -> None:
    """The same story with one thing that is not as it should be."""
    subject, maker, columns, postinst, files = "user broker", BY_DPKG, USER, POSTINST, {}
    if how == "another name":
        subject = "user eve"
    elif how == "by another":
        maker = BY_OTHERS
    elif how == "a shell":
        columns = {**USER, "shell": "/bin/bash"}
    elif how == "a number of another":
        world.accounts(PASSWD + "edgeguard:x:112:120::/:/usr/sbin/nologin\n", GROUP)
    elif how == "said in words":
        postinst = "#!/bin/sh\n# adduser broker\necho adduser broker\nadduser broker dialout\n"
    elif how == "declared otherwise":
        postinst, files = "", {SYSUSERS: "u other - -\n"}
    name = world.brought(
        postinst=postinst, files=files, vouched=how != "nobody vouches", installed=how != "not installed"
    )
    if how == "declared otherwise":  # the file as it lies there says so, and it is not as it was signed
        (world.root / SYSUSERS[1:]).write_text(DECLARED)
    rows = ((subject, maker, columns),) if how != "in no transaction" else ()
    assert world.explained(name, *rows) == {}


def test_a_shell_that_the_package_asks_for(world: Broker) -> None:
    name = world.brought(postinst=POSTINST.replace("--system", "--system --shell /bin/bash"))
    columns = {**USER, "shell": "/bin/bash"}
    assert world.explained(name, ("user broker", BY_DPKG, columns)) == {"user broker": columns}


@pytest.mark.parametrize("how", ["", "by another", "not named", "another script", "still installed"])
def test_an_account_that_went_with_its_package(world: Broker, how: str) -> None:
    postrm = world.root / "var/lib/dpkg/info/tool.postrm"
    (world.top / "policy/10.toml").write_text(
        '[[watch]]\npath = "/usr"\ncategory = "program"\n'
        '[[watch]]\npath = "/var/lib/dpkg/info/*.postrm"\ncategory = "script"\n'
    )
    postrm.write_text("deluser --system broker || true\n" if how != "not named" else "deluser other\n")
    assert world.ask("learn", {"reason": "test"})["revision"] == 2
    if how == "another script":
        postrm.write_text("deluser --quiet broker\n")
    name = world.transaction(removed=("tool",))
    assert world.ask("prepare", {"transactions": [name]})["prepared"] == name
    if how != "still installed":
        world.status.pop("tool")
        (world.root / "var/lib/dpkg/status").write_text("\n".join(world.status.values()))
    maker = BY_OTHERS if how == "by another" else BY_DPKG
    found = world.explained(name, ("user broker", maker, None), ("user root", maker, None))
    assert found == ({} if how else {"user broker": None})
    if not how:
        assert world.last["packages"][0]["text"].endswith(", user broker gone")


# -- kept, and what it means


def over(**accounts: Account) -> Overlay:
    return Overlay(b"b" * 32, b"d" * 32, 10, {}, (), {}, accounts)


def test_it_is_kept() -> None:
    found = over(a=Account(b"f" * 32, dict(USER)), b=Account(b"g" * 32, None))
    assert overlay.unpack(overlay_plain(found)) == found
    assert overlay.unpack(overlay_plain(over())) == over()
    for rows in (
        [1],
        [["a", 1, None]],
        [["a", b"x", 3]],
        [["a", b"x"]],
        [[3, b"x", None]],
        7,
        [["a", b"x", {"uid": {}}]],
    ):
        with pytest.raises(DecodeError):
            overlay.unpack([*overlay_plain(over())[:-1], rows])
    for plain in (overlay_plain(found)[:-1], [*overlay_plain(found), []], [2, *overlay_plain(found)[1:]]):
        with pytest.raises(DecodeError):
            overlay.unpack(plain)


def overlay_plain(found: Overlay) -> list[Any]:
    from edgeguard.codec import cbor

    return list(cbor.decode(overlay.pack(found), depth=8, size=overlay.SIZE_MAX))  # type: ignore[arg-type]


def test_what_the_baseline_said_later_counts() -> None:
    judging: Any = Judging.__new__(Judging)
    accounts = {
        "user came": Account(overlay.fingerprint(None), USER),
        "user went": Account(overlay.fingerprint(USER), None),
    }
    judging.upgraded = upgraded([b"b", b"d", 1, [], [], overlay.accounts_to_plain(accounts)])
    learned = {"user went": USER, "user plain": USER}

    def expected(subject: str, **accepted: Columns | None) -> Columns | None:
        table = {**learned, **{f"user {name}": columns for name, columns in accepted.items()}}
        references = References(Baseline(1, 0, 0, POLICY, references={"account": table}), account=judging.account)
        return references.expected("account", subject)

    assert expected("user came") == USER
    assert expected("user went") is None
    assert expected("user plain") == USER
    other = {**USER, "uid": 200}
    assert expected("user came", came=other) == other
    assert expected("user went", went=other) == other
    judging.upgraded = None
    assert expected("user came") is None
    assert expected("user went") == USER


def test_deb_of_the_story_is_the_one_that_was_signed(world: Broker) -> None:
    """The digests in these tests are of the .debs that they build."""
    name = world.brought(postinst=POSTINST)
    assert hashlib.sha256((world.spool / name / "00000.deb").read_bytes()).hexdigest() in (
        (world.root / "var/lib/apt/lists/h_d_dists_s_main_binary-all_Packages").read_text()
    )
