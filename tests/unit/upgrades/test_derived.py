"""Files that are made of what packages bring: right ones are explained, others of the same name are not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeguard.codec.layers import ABSENT, Layers
from edgeguard.codec.manifest import Entry
from edgeguard.model import Watch
from edgeguard.upgrades import expected
from edgeguard.upgrades.derived import Derived, Held
from edgeguard.upgrades.judge import Judge
from edgeguard.upgrades.kinds import BY_DPKG, BY_OTHERS, BY_UNKNOWN, may_be
from tests import lent

WATCHES = (
    Watch("/usr", "program"),
    Watch("/etc", "config"),
    Watch("/etc/sudoers.d", "sudoers"),
    Watch("/boot", "boot"),
    Watch("/usr/share/man", "other", only="setid"),
)
PYTHON = f"/usr/bin/python3.{sys.version_info.minor}"
TAG = f"cpython-3{sys.version_info.minor}"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="what is derived belongs to root")


class World:
    def __init__(self, top: Path) -> None:
        self.root, self.state = top / "root", top / "state"
        for path in (self.root, self.state):
            path.mkdir()
        self.known: dict[bytes, Entry] = {}
        self.began_ns = 0

    def make(self, path: str, text: str = "x\n", *, known: bool = False, link: str = "") -> None:
        target = self.root / path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            target.symlink_to(link)
        else:
            target.write_text(text)
            target.chmod(0o644)
        if known:
            eye = Judge(str(self.root), WATCHES, None, 1 << 30)
            watch = eye.plan.decide(path)
            assert watch is not None
            found = eye.look(path.encode(), watch)
            assert found is not None
            self.known[path.encode()] = found

    def explained(self, path: str, maker: int = BY_DPKG, *, scripts: bytes = b"", vouched: bytes = b"") -> Entry | None:
        expected.write(str(self.state / "known.egm"), self.known)
        expected.write(str(self.state / "top.egm"), {})
        base, top = (lent.manifest(self.state / name) for name in ("known.egm", "top.egm"))
        layers = Layers(base, top)
        judge = Judge(str(self.root), WATCHES, layers, 1 << 30)
        judge.scripts = scripts
        judge.vouched = {vouched}
        self.derived = Derived(judge, layers, self.began_ns, str(self.state))
        return dict(self.derived.explain_all([Held(path.encode(), maker)])).get(path.encode())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


needs_python = pytest.mark.skipif(not os.path.exists(PYTHON), reason=f"{PYTHON} is not installed")


def compiled(
    world: World, name: str, text: str = "A = 'one'\nB = ('two', 3)\n\n\ndef f(x):\n    return x + 1\n"
) -> str:
    """As py3compile does it, from the list of files on standard input."""
    world.make(f"/usr/lib/python3/{name}.py", text, known=True)
    source = f"{world.root}/usr/lib/python3/{name}.py"
    subprocess.run([PYTHON, "-E", "-S", "-m", "py_compile", "-"], input=f"{source}\n".encode(), check=True)
    made = f"/usr/lib/python3/__pycache__/{name}.{TAG}.pyc"
    (world.root / made[1:]).chmod(0o644)
    return made


@needs_python
@pytest.mark.parametrize("maker", [BY_DPKG, BY_UNKNOWN, BY_OTHERS])
def test_a_module_is_compiled_again_and_compared(world: World, maker: int) -> None:
    path = compiled(world, "good")
    assert world.explained(path, maker) is not None
    file = world.root / path[1:]
    good = file.read_bytes()
    file.write_bytes(good.replace(b"two", b"ten"))  # the header still fits the source
    assert world.explained(path, maker) is None
    file.write_bytes(good)
    file.chmod(0o666)
    assert world.explained(path, maker) is None


@needs_python
def test_a_module_whose_source_is_not_as_it_should_be(world: World) -> None:
    path = compiled(world, "changed")
    world.known[b"/usr/lib/python3/changed.py"] = world.known[b"/usr/lib/python3/changed.py"]._replace(digest=b"o" * 32)
    assert world.explained(path) is None
    del world.known[b"/usr/lib/python3/changed.py"]
    assert world.explained(path) is None


@needs_python
def test_a_module_that_went_with_its_source(world: World) -> None:
    path = compiled(world, "gone")
    world.make(path, known=True)
    (world.root / path[1:]).unlink()
    assert world.explained(path) is None, "the source is still there"
    (world.root / "usr/lib/python3/gone.py").unlink()
    assert world.explained(path) == ABSENT


# As update-alternatives writes it: mode, link; slaves, each a name and a link; choices, each with its slaves.
VI = """auto
/usr/bin/vi
vi.1.gz
/usr/share/man/man1/vi.1.gz
virc
/etc/virc

/usr/bin/vim.tiny
15
/usr/share/man/man1/vim.1.gz
/usr/share/vim/virc

"""


def test_alternatives(world: World) -> None:
    world.make("/usr/bin/vim.tiny", known=True)
    world.make("/var/lib/dpkg/alternatives/vi", VI)
    world.make("/etc/alternatives/vi", link="/usr/bin/vim.tiny")
    world.make("/usr/bin/vi", link="/etc/alternatives/vi")
    assert world.explained("/etc/alternatives/vi") is not None
    assert world.explained("/usr/bin/vi") is not None
    assert world.explained("/etc/alternatives/vi", BY_OTHERS) is None
    assert world.explained("/usr/bin/vi", BY_OTHERS) is None
    world.make("/etc/alternatives/vi.1.gz", link="/usr/share/man/man1/vim.1.gz")
    assert world.explained("/etc/alternatives/vi.1.gz") is not None, "no watch reads manual pages"
    world.make("/usr/bin/evil")
    for name, target in (("editor", "/tmp/evil"), ("pager", "/usr/bin/evil"), ("view", "/var/tmp/evil")):
        world.make(f"/etc/alternatives/{name}", link=target)
        world.make(f"/usr/bin/{name}", link=f"/etc/alternatives/{name}")
        assert world.explained(f"/etc/alternatives/{name}", BY_UNKNOWN) is None
        assert world.explained(f"/usr/bin/{name}", BY_UNKNOWN) is None


def test_an_alternative_leads_where_update_alternatives_says(world: World) -> None:
    for path in ("/usr/bin/dash", "/usr/bin/vim.tiny", "/usr/share/vim/virc"):
        world.make(path, known=True)
    world.make("/etc/alternatives/vi", link="/usr/bin/vim.tiny")
    world.make("/etc/alternatives/virc", link="/usr/share/vim/virc")
    world.make("/etc/alternatives/pager", link="/usr/bin/vim.tiny")
    assert world.explained("/etc/alternatives/vi") is None, "nobody asked for it"
    world.make("/var/lib/dpkg/alternatives/vi", VI)
    assert world.explained("/etc/alternatives/vi") is not None
    assert world.explained("/etc/alternatives/virc") is not None, "a slave"
    assert world.explained("/etc/alternatives/pager") is None, "another's choice"
    (world.root / "etc/alternatives/vi").unlink()
    world.make("/etc/alternatives/vi", link="/usr/bin/dash")
    assert world.explained("/etc/alternatives/vi") is None, "a known program, and no choice of this name"


def test_a_program_does_not_become_a_link(world: World) -> None:
    world.make("/usr/bin/vim.tiny", known=True)
    world.make("/var/lib/dpkg/alternatives/vi", VI)
    world.make("/etc/alternatives/vi", link="/usr/bin/vim.tiny")
    world.make("/usr/sbin/sshd", known=True)
    (world.root / "usr/sbin/sshd").unlink()
    world.make("/usr/sbin/sshd", link="/etc/alternatives/vi")
    assert world.explained("/usr/sbin/sshd", BY_DPKG) is None
    world.make("/etc/pam.d/runuser", known=True)
    world.make("/etc/pam.d/new", link="runuser")
    assert world.explained("/etc/pam.d/new", scripts=b"ln -s runuser /etc/pam.d/new") is None


def test_other_links_in_etc(world: World) -> None:
    world.make("/etc/tool/available/x.conf", known=True)
    world.make("/etc/tool/enabled/x.conf", link="../available/x.conf")
    world.make("/etc/tool/enabled/y.conf", link="../available/x.conf")
    assert world.explained("/etc/tool/enabled/x.conf") is not None
    assert world.explained("/etc/tool/enabled/x.conf", BY_OTHERS) is None
    assert world.explained("/etc/tool/enabled/y.conf") is None
    assert world.explained("/etc/tool/enabled/y.conf", scripts=b"ln -s x /etc/tool/enabled/y.conf\n") is not None


def test_links_that_led_to_what_is_gone(world: World) -> None:
    world.make("/usr/bin/nano", known=True)
    world.make("/usr/bin/pico", link="/etc/alternatives/pico", known=True)
    world.make("/etc/alternatives/pico", link="/usr/bin/nano", known=True)
    (world.root / "usr/bin/pico").unlink()
    assert world.explained("/usr/bin/pico", BY_UNKNOWN) is None, "what it led to is still there"
    assert world.explained("/usr/bin/pico", BY_DPKG) == ABSENT
    (world.root / "etc/alternatives/pico").unlink()
    (world.root / "usr/bin/nano").unlink()
    for path in ("/usr/bin/pico", "/etc/alternatives/pico"):
        assert world.explained(path, BY_UNKNOWN) == ABSENT


def test_local_rules_that_went_with_their_profile(world: World) -> None:
    """dh_apparmor's rm and rmdir are gone before anybody can ask who they were."""
    for path in ("/etc/apparmor.d/local/usr.bin.man", "/etc/apparmor.d/usr.bin.man"):
        world.make(path, known=True)
    folder = world.known[b"/etc/apparmor.d/local/usr.bin.man"]._replace(st_mode=0o40755, size=0, digest=b"")
    world.known[b"/etc/apparmor.d/local"] = folder
    (world.root / "etc/apparmor.d/local/usr.bin.man").unlink()
    (world.root / "etc/apparmor.d/local").rmdir()
    assert world.explained("/etc/apparmor.d/local/usr.bin.man", BY_UNKNOWN) is None, "the profile is still there"
    (world.root / "etc/apparmor.d/usr.bin.man").unlink()
    for path in ("/etc/apparmor.d/local/usr.bin.man", "/etc/apparmor.d/local"):
        assert world.explained(path, BY_UNKNOWN) == ABSENT
        assert world.explained(path, BY_OTHERS) is None


def test_units(world: World) -> None:
    world.make("/usr/lib/systemd/system/a.service", known=True)
    world.make("/usr/lib/systemd/system/b@.service", known=True)
    world.make("/usr/lib/systemd/system/evil.service")
    for name, target, fine in (
        ("a.service", "/lib/systemd/system/a.service", True),
        ("b@x.service", "/usr/lib/systemd/system/b@x.service", True),
        ("evil.service", "/usr/lib/systemd/system/evil.service", False),
        ("tmp.service", "/tmp/a.service", False),
    ):
        path = f"/etc/systemd/system/multi-user.target.wants/{name}"
        (world.root / "lib").symlink_to("usr/lib") if not (world.root / "lib").is_symlink() else None
        world.make(path, link=target)
        assert (world.explained(path) is not None) == fine, name
        assert world.explained(path, BY_OTHERS) is None


def test_a_unit_under_another_name(world: World) -> None:
    world.make("/usr/lib/systemd/system/ssh.service", "[Install]\nAlias=sshd.service\n", known=True)
    world.make("/usr/lib/systemd/system/getty@.service", known=True)
    world.make("/usr/lib/systemd/system/debug-shell.service", known=True)
    for path, target, fine in (
        ("/etc/systemd/system/sshd.service", "ssh.service", True),
        ("/etc/systemd/system/getty.target.wants/getty@tty1.service", "getty@.service", True),
        ("/etc/systemd/system/edgeguard.service", "debug-shell.service", False),
        ("/etc/systemd/system/edgeguard@tty1.service", "getty@.service", False),
    ):
        world.make(path, link=f"/usr/lib/systemd/system/{target}")
        assert (world.explained(path) is not None) == fine, path
    world.make("/usr/lib/systemd/system/ssh.service", "[Install]\nAlias=sshd.service edgeguard.service\n")
    assert world.explained("/etc/systemd/system/sshd.service") is None, "the unit is not as it should be"


def test_run_levels(world: World) -> None:
    world.make("/etc/init.d/cron", known=True)
    world.make("/etc/init.d/other", known=True)
    world.make("/etc/rc2.d/S01cron", link="../init.d/cron")
    world.make("/etc/rc2.d/S01cups", link="../init.d/other")
    assert world.explained("/etc/rc2.d/S01cron") is not None
    assert world.explained("/etc/rc2.d/S01cups") is None


PEM = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"


def test_certificates(world: World) -> None:
    for name in ("one", "two"):
        world.make(f"/usr/share/ca-certificates/{name}.crt", PEM.format(name), known=True)
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    world.make(bundle, PEM.format("one") + PEM.format("two"))
    assert world.explained(bundle, BY_UNKNOWN) is not None
    world.make(bundle, PEM.format("one") + PEM.format("evil"))
    assert world.explained(bundle) is None
    world.make(bundle, PEM.format("one") + "evil\n")
    assert world.explained(bundle) is None
    world.make("/etc/ssl/certs/one.pem", link="/usr/share/ca-certificates/one.crt")
    world.make("/etc/ssl/certs/0a1b2c3d.0", link="one.pem")
    world.make("/etc/ssl/certs/evil.pem", link="/home/evil.crt")
    assert world.explained("/etc/ssl/certs/one.pem") is not None
    assert world.explained("/etc/ssl/certs/0a1b2c3d.0") is not None
    assert world.explained("/etc/ssl/certs/evil.pem") is None


def test_what_pam_auth_update_writes(world: World) -> None:
    world.make("/usr/share/pam-configs/unix", "Auth:\n\t[success=end default=ignore]\tpam_unix.so nullok\n", known=True)
    template = "# made\n$auth_primary\nauth requisite pam_deny.so\nauth required pam_permit.so\n$auth_additional\n"
    world.make("/usr/share/pam/common-auth", template, known=True)
    path = "/etc/pam.d/common-auth"
    unix = "auth\t[success=1 default=ignore]\tpam_unix.so nullok\n"
    good = template.replace("$auth_primary\n", unix).replace("$auth_additional\n", "")
    world.make(path, good)
    assert world.explained(path) is not None
    assert world.explained(path, BY_OTHERS) is None
    for evil in ("auth sufficient pam_evil.so\n", "auth sufficient pam_unix.so nullok evil\n", "@include evil\n"):
        world.make(path, good + evil)
        assert world.explained(path) is None, evil
    world.make(path, good)
    world.make("/usr/share/pam/common-auth", good)
    assert world.explained(path) is None, "the template is not as it should be"


def test_images_and_caches_are_dpkgs_childrens(world: World) -> None:
    world.make("/boot/initrd.img-6.1.0-1-arm64")
    path = "/boot/initrd.img-6.1.0-1-arm64"
    assert world.explained(path, BY_DPKG) is not None
    assert world.explained(path, BY_OTHERS) is None
    assert world.explained(path, BY_UNKNOWN) is not None
    assert world.derived.unproven == 1
    world.began_ns = 1 << 62  # it was changed before anything was installed
    assert world.explained(path, BY_UNKNOWN) is None
    (world.root / path[1:]).chmod(0o4755)
    assert world.explained(path, BY_DPKG) is None


BOOT = "/boot/firmware"


@pytest.mark.parametrize(
    ("path", "original"),
    [
        ("start4.elf", "/usr/lib/raspi-firmware/start4.elf"),
        ("overlays/a.dtbo", "/usr/lib/raspi-firmware/overlays/a.dtbo"),
        ("overlays/b.dtbo", "/usr/lib/linux-image-6.12.47+rpt-rpi-v8/overlays/b.dtbo"),
        ("bcm2711-rpi-4-b.dtb", "/usr/lib/linux-image-6.12.0-1-arm64/broadcom/bcm2711-rpi-4-b.dtb"),
        ("bcm2837-rpi-3-b.dtb", "/usr/lib/linux-image-6.12.0-1-armmp/bcm2837-rpi-3-b.dtb"),
        ("vmlinuz-6.12.0-1-arm64", "/boot/vmlinuz-6.12.0-1-arm64"),
        ("kernel8.img", "/boot/vmlinuz-6.12.47+rpt-rpi-v8"),
    ],
)
def test_what_is_copied_to_the_boot_partition(world: World, path: str, original: str) -> None:
    """By the hooks of Debian's raspi-firmware and of Raspberry Pi OS's: only what is as it should be elsewhere."""
    copy = f"{BOOT}/{path}"
    world.make(original, "right\n", known=True)
    world.make(copy, "right\n")
    assert world.explained(copy) is not None
    world.began_ns = 1 << 62  # rsync keeps the time, and there FAT has no other
    assert world.explained(copy, BY_UNKNOWN) is not None
    assert world.derived.unproven == 0
    assert world.explained(copy, BY_OTHERS) is None
    world.make(copy, "evil\n")
    assert world.explained(copy) is None, "slipped in by a child of dpkg"
    world.make(original, "evil\n")
    assert world.explained(copy) is None, "the original is another than is known"
    digest = hashlib.sha256(b"evil\n").digest()
    assert world.explained(copy, vouched=digest) is not None, "a file of a package of this transaction"
    (world.root / copy[1:]).unlink()
    world.make("/etc/x", "right\n", known=True)
    world.make(copy, link="/etc/x")
    assert world.explained(copy) is None, "no copy is a link"


def test_lines_that_hooks_write_to_the_boot_partition(world: World) -> None:
    """Debian's hook of kernels writes these anew; Raspberry Pi OS's does not, so there it is somebody else."""
    path, hook = f"{BOOT}/cmdline.txt", "/etc/kernel/postinst.d/z50-raspi-firmware"
    world.make(path, "root=/dev/x\n")
    assert world.explained(path) is None, "nobody speaks of it"
    world.make(hook, "cat >/boot/firmware/cmdline.txt <<EOF\n", known=True)
    assert world.explained(path) is not None
    assert world.explained(path, BY_UNKNOWN) is not None
    assert world.derived.unproven == 1
    assert world.explained(path, BY_OTHERS) is None
    assert world.explained(f"{BOOT}/config.txt") is None
    world.make(hook, "cat >/boot/firmware/cmdline.txt <evil\n")
    assert world.explained(path) is None, "the hook is not as it should be"
    assert world.explained(path, scripts=b'sed -i s/a/b/ "$where/cmdline.txt"\n') is not None, "a signed script does it"


@pytest.mark.parametrize("name", ["autoboot.txt", "armstub8.bin", "ssh", "userconf.txt", "user-data"])
def test_what_no_package_makes_on_the_boot_partition(world: World, name: str) -> None:
    world.make(f"{BOOT}/{name}")
    assert world.explained(f"{BOOT}/{name}", vouched=hashlib.sha256(b"x\n").digest()) is None
    assert not may_be(f"{BOOT}/{name}".encode(), b"", "boot", BY_DPKG)


def test_settings_that_scripts_make(world: World) -> None:
    world.make("/etc/tool.conf", "as in the package\n", known=True)
    digest = world.known[b"/etc/tool.conf"].digest
    world.make("/etc/copy.conf", "as in the package\n")
    script = b"cp /usr/share/tool.conf /etc/copy.conf\n"
    assert world.explained("/etc/copy.conf", BY_UNKNOWN, vouched=digest, scripts=script) is not None
    assert world.explained("/etc/copy.conf", BY_OTHERS, vouched=digest, scripts=script) is None
    assert world.explained("/etc/copy.conf", vouched=digest) is None, "nobody speaks of it"
    assert world.explained("/etc/copy.conf") is None
    world.make("/var/lib/ucf/registry", "tool /etc/copy.conf\nother /etc/else.conf\n")
    assert world.explained("/etc/copy.conf", vouched=digest) is not None
    world.make("/etc/else.conf", "")
    empty = hashlib.sha256(b"").digest()
    assert world.explained("/etc/else.conf", vouched=empty) is None, "any package has an empty file"
    world.make("/etc/named.conf", "whatever\n")
    script = b"#!/bin/sh\ncat >/etc/named.conf <<END\n"
    assert world.explained("/etc/named.conf", scripts=script) is not None
    assert world.explained("/etc/named.conf", BY_UNKNOWN, scripts=script) is None
    assert world.explained("/etc/named.conf", scripts=b"cat >/etc/named.conf.d/x\n") is None
    world.make("/etc/sudoers.d/x", "ALL\n")
    assert world.explained("/etc/sudoers.d/x", scripts=b"touch /etc/sudoers.d/x\n") is None


@pytest.mark.parametrize(
    ("path", "target", "category", "maker", "answer"),
    [
        (b"/usr/lib/x/__pycache__/a.cpython-311.pyc", b"", "program", BY_OTHERS, True),
        (b"/usr/bin/vi", b"/etc/alternatives/vi", "program", BY_UNKNOWN, True),
        (b"/usr/bin/vi", b"/etc/alternatives/vi", "program", BY_OTHERS, False),
        (b"/usr/bin/vi", b"/tmp/vi", "program", BY_DPKG, False),
        (b"/usr/bin/new", b"", "program", BY_DPKG, False),
        (b"/etc/x.conf", b"", "config", BY_UNKNOWN, True),
        (b"/etc/apt/apt.conf.d/50x", b"", "script", BY_UNKNOWN, True),
        (b"/etc/apt/apt.conf.d/50x", b"", "script", BY_OTHERS, False),
        (b"/etc/sudoers.d/x", b"", "sudoers", BY_UNKNOWN, False),
        (b"/etc/sudoers.d/x", b"", "sudoers", BY_OTHERS, False),
        (b"/boot/initrd.img-6", b"", "boot", BY_UNKNOWN, True),
        (b"/boot/initrd.img-6", b"", "boot", BY_OTHERS, False),
        (b"/boot/vmlinuz-6", b"", "boot", BY_DPKG, False),
    ],
)
def test_what_may_wait(path: bytes, target: bytes, category: str, maker: int, answer: bool) -> None:
    assert may_be(path, target, category, maker) is answer
