"""Which paths a postrm takes away, read without a shell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.upgrades.postrm import LINE_MAX, PATHS_MAX, SCRIPT_MAX, removed

SCRIPT = rb"""#!/bin/sh
set -e
PACKAGE="tool"
DEFAULT="/etc/default/$PACKAGE"
JOB=/etc/cron.d/${PACKAGE}
# rm -f /etc/remark
if [ "$1" = purge ] && [ -e /etc/asked ]; then
    rm -f "$DEFAULT" \
        '/etc/tool.d/made' /lib/systemd/system/tool.service
    /bin/rm -rf /etc/tool.d/ /var/lib/tool/*.db /var/lib/${OTHER}/x "$HOME/.tool"
    ucf --purge $JOB
    rmdir --ignore-fail-on-non-empty /etc/tool.d 2>/dev/null || true
fi
"""


def test_what_is_removed_is_named() -> None:
    assert removed(SCRIPT) == [
        *(b"/etc/default/tool", b"/etc/tool.d/made", b"/lib/systemd/system/tool.service"),
        *(b"/etc/tool.d", b"/etc/cron.d/tool"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"[ -e /etc/passwd ] || exit 0",
        b"cp /etc/a /etc/b",
        b"confirm /etc/a",
        b"/etc/rm /etc/a",
        b"rm -f /etc/*.conf /etc/[ab] /etc/a? /etc/{a,b} /etc/a$x /etc/a${x} $x/etc/a ${x}/etc/a",
        b"rm -f /etc/../a /etc/./a /etc//a / // /dev/null relative/etc/a",
        b"x=$(cat /etc/a)",
        b"X=`ls`; rm $X/a",
        b"  # rm /etc/a",
    ],
)
def test_what_is_not(line: bytes) -> None:
    assert removed(line) == []


def test_bounds() -> None:
    assert removed(b"rm /etc/a\n" + b"#" * SCRIPT_MAX) == []
    assert removed(b"rm /etc/a" + b" " * LINE_MAX) == []
    many = b"".join(b"rm /%d\n" % number for number in range(PATHS_MAX + 5))
    assert len(removed(many)) == PATHS_MAX
    grows = b"A=%s\n" % (b"a" * 4000) + b"rm /$A$A\nrm /etc/b\n"
    assert removed(grows) == [b"/etc/b"]


@given(st.binary(max_size=300) | st.text(alphabet="rm /ab$={}\"'\n\\.", max_size=80).map(str.encode))
def test_any_script(script: bytes) -> None:
    for path in removed(b"rm " + script):
        assert path.startswith(b"/")
        assert b"\n" not in path
        assert not {b"", b".", b".."} & set(path[1:].split(b"/"))
