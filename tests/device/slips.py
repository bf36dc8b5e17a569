"""What somebody slips in while packages are upgraded: a table, one row a transaction.

HOOKS put a place to act into each moment of a transaction; they belong to the device before it is learned. What acts
there is a child of dpkg or apt, as a malicious hook or a maintainer script is: the hardest case, since what dpkg's
children make may be made of a package. BESIDE is somebody else, who waits for the moment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.device.machine import Machine

KEPT = "kept"  # apt's hooks have run, dpkg has not begun: what lies on the disk is no longer what was verified
UNPACKING = "unpacking"  # dpkg's own hook, before it unpacks
UNPACKED = "unpacked"  # between unpacking and configuring
SCRIPT = "script"  # in the maintainer script, when it asks whether it may start a service
CONFIGURED = "configured"  # all is done, apt or unattended-upgrades still holds the lock
BESIDE = "beside"  # a process of its own, once the package's new file is there

ACTS = "/run/slip"
HOOK = "/usr/local/lib/slip"
HOOKS = {
    # what apt says has to be read
    HOOK: f"""#!/bin/sh
[ "$1" = kept ] && {{ cat >{ACTS}/apt || cat >/dev/null; }} 2>/dev/null
[ -f {ACTS}/$1 ] || exit 0
mv {ACTS}/$1 {ACTS}/$1.now && sh -ex {ACTS}/$1.now >>{ACTS}/said 2>&1 </dev/null && mv {ACTS}/$1.now {ACTS}/$1.done
exit 0
""",
    "/usr/sbin/policy-rc.d": f"#!/bin/sh\n{HOOK} script\nexit 0\n",
    "/etc/apt/apt.conf.d/95slip": f"""DPkg::Pre-Install-Pkgs {{ "{HOOK} kept"; }};
DPkg::Tools::Options::{HOOK}::Version "3";
DPkg::Options {{ "--force-confdef"; "--force-confold"; }};
""",
    "/etc/dpkg/dpkg.cfg.d/slip": f"""pre-invoke="case $DPKG_HOOK_ACTION in unpack|install) {HOOK} unpacking;; esac"
post-invoke="case $DPKG_HOOK_ACTION in unpack) {HOOK} unpacked;; configure|install) {HOOK} configured;; esac"
""",
}


def prepare(device: Machine) -> None:
    for path, text in HOOKS.items():
        device.write(path, text, 0o755 if text.startswith("#!") else 0o644)


@dataclass(frozen=True, slots=True)
class Slip:
    """One transaction of one package, and what is slipped into it."""

    name: str
    package: str
    when: str
    act: str
    found: tuple[tuple[str, str], ...]  # (code, subject), both patterns: each must be open afterwards, and nothing else
    undo: str = ""  # what `apt-get install --reinstall PACKAGE` does not put right
    before: str = ""  # before the transaction
    file: str = ""  # BESIDE: acts when this file is another than before
    how: str = "apt"  # apt-get install, dpkg (-i), unattended (-upgrade, of all that is left)


def exchanged(change: str, how: str = "cp --remove-destination $x.deb $deb") -> str:
    """The one .deb that apt hands over becomes another one: its tree is $x."""
    return f"""deb=$(sed -n 's/.* \\(.*[.]deb\\)$/\\1/p' {ACTS}/apt); x={ACTS}/x
dpkg-deb -R $deb $x
{change}
dpkg-deb -Znone --root-owner-group -b $x $x.deb
{how}"""


def open_(code: str, *subjects: str) -> tuple[tuple[str, str], ...]:
    return tuple((code, re.escape(subject)) for subject in subjects)


PYTHON = "/usr/lib/python3/dist-packages"
UNIT = "[Service]\\nExecStart=/usr/bin/sleep infinity\\n[Install]\\nWantedBy=multi-user.target\\n"

SLIPS = (
    # -- before anything is unpacked
    Slip("another .deb", "tree", KEPT, exchanged("echo evil >>$x/usr/bin/tree"),
         open_("EG-FILE-002", "/usr/bin/tree")),
    Slip("the kept .deb itself", "pv", KEPT, exchanged("echo evil >>$x/usr/bin/pv", "cat $x.deb >$deb"),
         (("EG-PKG-002|EG-FILE-002", "pv|/usr/bin/pv"),)),
    Slip("a .deb that brings more", "ed", KEPT, exchanged("mkdir -p $x/usr/bin; cp /usr/bin/true $x/usr/bin/edd"),
         open_("EG-FILE-001", "/usr/bin/edd"), undo="rm /usr/bin/edd"),
    Slip("a .deb with a script", "ethtool", KEPT,
         exchanged("printf '#!/bin/sh\\necho x >/etc/cron.d/more\\n' >$x/DEBIAN/postinst; "
                   "chmod 755 $x/DEBIAN/postinst"),
         (*open_("EG-PERS-003", "/etc/cron.d/more"), *open_("EG-PERS-004", "/var/lib/dpkg/info/ethtool.postinst")),
         undo="rm /etc/cron.d/more /var/lib/dpkg/info/ethtool.postinst"),
    Slip("a settings file that is kept", "nano", UNPACKING, "echo 'include /tmp/x' >>/etc/nanorc",
         open_("EG-FILE-002", "/etc/nanorc"), undo="cp /root/nanorc /etc/nanorc", before="cp /etc/nanorc /root/nanorc"),
    Slip("a diversion", "hexedit", UNPACKING,
         "dpkg-divert --local --no-rename --divert /usr/bin/hexedit.real --add /usr/bin/hexedit",
         (*open_("EG-FILE-001", "/usr/bin/hexedit.real"), *open_("EG-FILE-002", "/usr/bin/hexedit")),
         undo="rm -f /usr/bin/hexedit.real; dpkg-divert --local --no-rename --remove /usr/bin/hexedit"),
    Slip("a list of files that names another's", "dos2unix", UNPACKED, "rm -f /usr/bin/bc",
         open_("EG-FILE-004", "/usr/bin/bc"), before="echo /usr/bin/bc >>/var/lib/dpkg/info/dos2unix.list"),
    # -- between unpacking and configuring
    Slip("its program", "zip", UNPACKED, "cp /usr/bin/true /usr/bin/zip", open_("EG-FILE-002", "/usr/bin/zip")),
    Slip("the old program again", "dc", UNPACKED, "cp /root/dc /usr/bin/dc", open_("EG-FILE-002", "/usr/bin/dc"),
         before="cp /usr/bin/dc /root/dc"),
    Slip("set-user-ID", "unzip", UNPACKED, "chmod u+s /usr/bin/unzip",
         open_("EG-FILE-005", "/usr/bin/unzip", "/usr/bin/zipinfo")),  # two names of one file
    Slip("a link in its place", "gdisk", UNPACKED, "mv /usr/sbin/gdisk /usr/sbin/.g; ln -s .g /usr/sbin/gdisk",
         (*open_("EG-FILE-006", "/usr/sbin/gdisk"), *open_("EG-FILE-001", "/usr/sbin/.g")),
         undo="rm -f /usr/sbin/.g"),
    Slip("its program is gone", "colordiff", UNPACKED, "rm /usr/bin/colordiff",
         open_("EG-FILE-004", "/usr/bin/colordiff")),
    # -- in a maintainer script
    Slip("a unit, enabled", "vnstat", SCRIPT,
         f"printf '{UNIT}' >/etc/systemd/system/more.service; "
         "ln -s ../more.service /etc/systemd/system/multi-user.target.wants/more.service",
         open_("EG-PERS-002", "/etc/systemd/system/more.service",
               "/etc/systemd/system/multi-user.target.wants/more.service"),
         undo="rm /etc/systemd/system/more.service /etc/systemd/system/multi-user.target.wants/more.service"),
    Slip("a drop-in of its unit", "rsyslog", SCRIPT,
         "mkdir -p /etc/systemd/system/rsyslog.service.d; printf '[Service]\\nExecStartPre=/usr/bin/true\\n' "
         ">/etc/systemd/system/rsyslog.service.d/more.conf",
         open_("EG-PERS-002", "/etc/systemd/system/rsyslog.service.d/more.conf"),
         undo="rm -r /etc/systemd/system/rsyslog.service.d"),
    Slip("a cron job", "anacron", SCRIPT, "echo '* * * * * root true' >/etc/cron.d/more2",
         open_("EG-PERS-003", "/etc/cron.d/more2"), undo="rm /etc/cron.d/more2"),
    Slip("a settings file that is new", "smartmontools", SCRIPT, "echo DEVICESCAN -M exec /tmp/x >>/etc/smartd.conf",
         open_("EG-FILE-002", "/etc/smartd.conf"), undo="cp /root/smartd.conf /etc/smartd.conf",
         before="cp /etc/smartd.conf /root/smartd.conf"),
    # -- when all is done, and the lock still held
    Slip("a compiled module", "python3-six", CONFIGURED, f"cp /usr/bin/true {PYTHON}/__pycache__/six.cpython-3*.pyc",
         (("EG-FILE-00[12]", rf"{PYTHON}/__pycache__/six\.cpython-3\d+\.pyc"),),
         undo=f"rm {PYTHON}/__pycache__/six.*.pyc"),
    Slip("a module and what is compiled of it", "python3-idna", CONFIGURED,
         f"echo 'import os' >>{PYTHON}/idna/core.py; python3 -m py_compile {PYTHON}/idna/core.py",
         (*open_("EG-FILE-002", f"{PYTHON}/idna/core.py"),
          ("EG-FILE-00[12]", rf"{PYTHON}/idna/__pycache__/core\.cpython-3\d+\.pyc")),
         undo=f"rm {PYTHON}/idna/__pycache__/core.*.pyc"),
    Slip("writable for all", "psmisc", CONFIGURED, "chmod o+w /usr/bin/fuser", open_("EG-FILE-003", "/usr/bin/fuser"),
         undo="chmod o-w /usr/bin/fuser", how="dpkg"),
    Slip("capabilities", "dmidecode", CONFIGURED,
         "python3 -c 'import os, struct; os.setxattr(\"/usr/sbin/biosdecode\", \"security.capability\", "
         "struct.pack(\"<IIIII\", 0x2000001, 1 << 7, 0, 0, 0))'",
         (("EG-FILE-00[35]", "/usr/sbin/biosdecode"),), how="dpkg"),
    Slip("an override of rights", "whois", CONFIGURED,
         "dpkg-statoverride --update --add root root 4755 /usr/bin/whois", open_("EG-FILE-005", "/usr/bin/whois"),
         undo="dpkg-statoverride --remove /usr/bin/whois", how="dpkg"),
    Slip("an alternative", "traceroute", CONFIGURED, "ln -sfn /usr/bin/dash /etc/alternatives/traceroute",
         open_("EG-FILE-006", "/etc/alternatives/traceroute"), undo="update-alternatives --auto traceroute"),
    Slip("who may become root", "mtr-tiny", CONFIGURED, "echo 'games ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/more",
         open_("EG-ACCT-005", "/etc/sudoers.d/more"), undo="rm /etc/sudoers.d/more"),
    Slip("how one logs in", "ucf", CONFIGURED, "sed -i '1iauth sufficient pam_permit.so' /etc/pam.d/common-auth",
         open_("EG-FILE-002", "/etc/pam.d/common-auth"), undo="cp -p /root/common-auth /etc/pam.d/common-auth",
         before="cp -p /etc/pam.d/common-auth /root/common-auth"),
    Slip("a certificate in the bundle", "ca-certificates", CONFIGURED,
         "cat /root/more.pem >>/etc/ssl/certs/ca-certificates.crt",
         open_("EG-FILE-002", "/etc/ssl/certs/ca-certificates.crt"), undo="update-ca-certificates -f",
         before="openssl req -x509 -newkey ed25519 -nodes -subj /CN=more -keyout /root/more.key -out /root/more.pem"),
    Slip("a key of an archive", "popularity-contest", CONFIGURED,
         "cp /usr/share/keyrings/debian-archive-keyring.gpg /etc/apt/trusted.gpg.d/more.gpg",
         open_("EG-FILE-001", "/etc/apt/trusted.gpg.d/more.gpg"), undo="rm /etc/apt/trusted.gpg.d/more.gpg"),
    # -- beside it all
    Slip("its program, beside", "lsof", BESIDE, "sleep 0.3; cp /usr/bin/true /usr/bin/lsof",
         open_("EG-FILE-002", "/usr/bin/lsof"), file="/usr/bin/lsof"),
    Slip("what every program loads", "gawk", BESIDE, "echo '# x' >/etc/ld.so.preload",
         open_("EG-PERS-001", "/etc/ld.so.preload"), undo="rm /etc/ld.so.preload", file="/usr/bin/gawk"),
    Slip("a program beside its own", "strace", BESIDE, "cp /usr/bin/true /usr/bin/strace-more",
         open_("EG-FILE-001", "/usr/bin/strace-more"), undo="rm /usr/bin/strace-more", file="/usr/bin/strace"),
    Slip("a hook of the initramfs", "initramfs-tools-core", BESIDE,
         "printf '#!/bin/sh\\n' >/etc/initramfs-tools/hooks/more; chmod 755 /etc/initramfs-tools/hooks/more",
         open_("EG-PERS-004", "/etc/initramfs-tools/hooks/more"), undo="rm /etc/initramfs-tools/hooks/more",
         file="/usr/sbin/mkinitramfs"),
    Slip("while nobody looks", "pciutils", BESIDE, "sleep 0.3; cp /usr/bin/true /usr/bin/setpci",
         open_("EG-FILE-002", "/usr/bin/setpci"), file="/usr/bin/lspci", how="unattended"),
)  # fmt: skip
# One of each moment, for every commit.
FEW = ("another .deb", "a settings file that is kept", "a list of files that names another's", "its program",
       "a drop-in of its unit", "a module and what is compiled of it", "its program, beside")  # fmt: skip
