"""Rules of AIDE become a policy that watches no less without saying so; what is not carried is said line by line."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.baseline.aide_conf import AideConf
from edgeguard.baseline.aide_policy import Importer
from edgeguard.baseline.aide_regex import NoGlob, globs
from edgeguard.baseline.policy import parse
from edgeguard.model import Watch
from edgeguard.sensors.watching import Plan

CONF = "/etc/aide/aide.conf"


class Files:
    def __init__(self, files, programs=()):
        self.files, self.programs = files, programs

    def text(self, path):
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory")
        return self.files[path].encode("utf-8", "surrogateescape")

    def names(self, directory):
        return sorted(path.rpartition("/")[2] for path in self.files if path.rpartition("/")[0] == directory)

    def executable(self, path):
        return path in self.programs

    def exists(self, path):
        return path in self.files


def imported(text, standing=(), **files):
    world = Files(
        {CONF: text, **{name.replace("__", "/"): content for name, content in files.items()}}, ("/etc/d/run",)
    )
    conf = AideConf(world, "pump-07")
    conf.read(CONF)
    made = Importer(standing).run(conf.rules, conf.said, CONF)
    policy = parse([("60-aide.toml", made.text.encode())])
    return policy, [(item.line, item.message, item.lost) for item in made.said]


def watched(text, **files):
    policy, said = imported(text, **files)
    assert [message for _, message, lost in said if lost] == []
    return {watch.path: watch for watch in policy.watches}


def test_groups_become_categories():
    found = watched(
        "Mine = p+u+g\nMore = Mine+sha512+acl-g\nThis_Is_A_Very_Long_Name_Of_A_Group = R\n"
        "/a$ Mine\n/b$ More\n/c$ R\n/d$ >\n/e$ H\n/f$ E\n/g$ This_Is_A_Very_Long_Name_Of_A_Group\n/h$ p+i+n-i\n"
    )
    assert found["/a"].checks == ("type", "mode", "uid", "gid")
    assert found["/b"].checks == ("type", "sha256", "mode", "uid", "xattrs")
    assert found["/c"].checks == ("type", "sha256", "mode", "uid", "gid", "target", "caps", "xattrs")
    assert found["/d"].grows
    assert found["/e"].checks == ("type", "sha256")
    assert found["/f"].checks == ("type",)
    assert found["/g"].category == found["/c"].category
    assert found["/h"].checks == ("type", "mode")


def test_lines():
    found = watched(
        "# a comment\n/etc$ \\\n  R\n\t=/home$ d R\n/opt$ f,d R\n/a\\ b\\\\.c$ R\n^/srv$ R\r\n@@{X}\n".replace(
            "@@{X}\n", ""
        )
    )
    assert set(found) == {"/etc", "/home", "/opt", "/a b.c", "/srv"}


def test_macros_and_conditions():
    text = """
@@define D data
@@define DD @@{D}base
@@ifdef D
/@@{DD}$ R
@@else
/no$ R
@@endif
@@ifndef D
/no$ R
@@ifdef D
/no$ R
@@endif
@@endif
@@if not defined(E)
/yes$ R
@@endif
@@if hostname pump-07
/mine$ R
@@else
/no$ R
@@endif
@@if exists /etc/aide/aide.conf
/there$ R
@@endif
@@undef D
@@ifdef D
/no$ R
@@endif
"""
    assert set(watched(text)) == {"/database", "/yes", "/mine", "/there"}


def test_includes_are_read_and_programs_are_not_run():
    policy, said = imported(
        "@@include /etc/one\n@@x_include /etc/d ^[a-z0-9]+$\n@@include /etc/none\n@@include /etc/d .*\n"
        "@@x_include_setenv A b\n",
        __etc__one="/one$ R\n",
        __etc__d__two="/two$ R\n",
        __etc__d__run="/run$ R\n",
        **{"__etc__d__not.me": "/not$ R\n"},
    )
    assert {watch.path for watch in policy.watches} == {"/one", "/two"}
    assert sorted((line, lost) for line, _, lost in said) == [(0, True), (2, True), (4, True), (5, False)]
    assert "is a program, which is not run" in str(said)


def test_a_file_that_includes_itself_ends():
    _, said = imported(f"@@include {CONF}\n@@include {CONF}\n")
    assert "too many files" in str(said)


def test_what_is_left_out():
    policy, said = imported(
        "/var$ R\n/data R\n!/data/cache\n!/data/tmp/.*\n!/data/(a|bc?)$ f\n!/data/x.*/y$\n!/data/[0-9]+$\n"
        "!/data/n[0-9]$\n!/.*\n"
    )
    plan = Plan(policy.watches)
    left = ["/data/cache/x", "/data/tmp/x", "/data/a", "/data/b", "/data/bc", "/data/xx/z/y", "/data/n7"]
    assert [path for path in left if plan.decide(path) is not None] == []
    stays = ["/data/cached", "/data/tmp", "/data/ab", "/data/xy", "/data/12", "/data/n77", "/data/x"]
    assert [path for path in stays if plan.decide(path) is None] == []
    assert (7, "/data/[0-9]+$ cannot be a glob: a repetition that globs do not know; it stays watched", False) in said
    assert any(line == 9 and "would leave everything out" in message for line, message, _ in said)
    ends = "3 exclusions are for some types of file, or (AIDE 0.19) for what ends so ($): "
    assert any(message.startswith(ends) and lost for _, message, lost in said)


def test_what_is_left_out_with_all_in_it():
    policy, said = imported("/data R\n-/data/cache\n-/data/tmp$\n!/data/log\n")
    plan = Plan(policy.watches)
    assert [plan.decide(f"/data/{name}/x") for name in ("cache", "tmp", "log")] == [None, None, None]
    assert [message for line, message, lost in said if lost and line] == []
    assert "exclusions" not in str(said)


def test_rules_for_some_file_systems():
    policy, said = imported("/ =vfat R-i\n/x$ d=vfat R\n/y$ 0 R\n/z$ f,d=0x01021994 R\n!/w =tmpfs\n")
    assert {watch.path for watch in policy.watches} == {"/", "/x", "/y", "/z"}
    assert [(line, lost) for line, _, lost in said] == [(0, True)]
    assert "1 exclusions are for some types of file" in said[0][1]


def test_versions_are_compared():
    text = """
@@if @@{AIDE_VERSION} version_ge 0.19
/new$ R
@@else
/no$ R
@@endif
@@if not 0.18.8-rc1 version_ge 0.18.10
/older$ R
@@endif
@@if 2.17 version_ge 1.1
/later$ R
@@endif
@@if @@{AIDE_VERSION} version_ge 0.20
/no$ R
@@endif
/of-@@{HOSTNAME}$ R
"""
    assert set(watched(text)) == {"/new", "/older", "/later", "/of-pump-07"}


def test_what_is_included_may_lie_elsewhere():
    files = {"__etc__d__one": "/a$ R\n!/a/b\n@@include /etc/e ^[a-z]+$ /in\n", "__etc__e__two": "^/c$ R\n"}
    policy, said = imported("@@include /etc/d ^[a-z]+$ /mnt\n/d R\n!/mnt/no\n/mnt R\n", **files)
    assert {watch.path for watch in policy.watches} == {"/mnt/a", "/mnt/in/c", "/mnt", "/d"}
    assert Plan(policy.watches).decide("/mnt/a/b") is None
    assert [(line, lost) for line, _, lost in said] == [(0, True)]  # no $ at the end


def test_encoded_characters():
    assert set(watched("/a%20b/%c3%a9\\.c$ R\n/c%%41%4$ R\n")) == {"/a b/\xe9.c", "/c%A%4"}


def test_only_what_lies_in_it():
    policy, said = imported("=/srv/ R\n=/opt$ R\n")
    assert {watch.path: watch.recurse for watch in policy.watches} == {"/srv": True, "/opt": False}
    assert said == [(1, "all below /srv is watched, and not only what lies in it", False)]


def test_what_is_no_glob_is_watched_more():
    policy, said = imported("/srv/log/app[0-9]+/.*\\.txt$ R\n/srv/a(?=b)c R\n/x/(?!y) R\n/etc R\n")
    assert {(watch.path, watch.recurse) for watch in policy.watches} == {
        ("/srv/log/app*", True),
        ("/srv", True),
        ("/etc", True),
    } - {("/srv", True)}
    assert [(line, lost) for line, _, lost in said] == [(0, True), (1, False), (2, True), (3, True)]


def test_what_stands_already_stays():
    standing = (Watch("/etc", "config", source="10.toml:7"), Watch("/", "other", only="setid", source="10.toml:1"))
    policy, said = imported("/etc R\n/ R\n", standing)
    assert policy.watches == ()
    assert [(message, lost) for _, message, lost in said if "standing" in message or "stays" in message] == [
        ("/etc is watched by 10.toml:7 already, which stays", False),
        ("/ is watched by 10.toml:1 already, which stays and checks less", True),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/etc Nothing", "the attribute or group Nothing is not known"),
        ("/etc", "a rule without a group"),
        ("/@@{X} R", "@@{X} is not defined"),
        ("@@magic x", "@@magic is not known"),
        ("@@endif", "@@endif without a condition"),
        ("@@ifdef X", "@@endif is missing"),
        ("@@if version_ge 0.18", "the condition version_ge is not known"),
        ("@@if 0.19 version_lt 0.18", "the condition 0.19 is not known"),
        ("/ =vfat", "the attribute or group =vfat is not known"),
        ("@@include /etc/d ^[a-z]+$ /mnt more", "is understood as a filter of names"),
        ("@@include /etc/d ^[z-a]+$", "is no filter of names"),
        ("what is this", "not a line of aide.conf that is known"),
        ("/a(b R", "a parenthesis is missing"),
        ("/a)b R", "a parenthesis too many"),
        ("/a[b R", "a bracket is missing"),
        ("/a\\", "a rule without a group"),
        ("/\x01 R", "no path that can be watched"),
        ("/\udcff R", "no path that can be watched"),
        ("/a/../b R", ""),
        ("/" + "(a|b)" * 9 + " R", "more than 64 alternatives"),
        ("/" + "(" * 40 + ")" * 40 + " R", "groups within each other"),
        ("/a{1000000000} R", "a count that is none"),
    ],
)
def test_slips_are_said(line, message):
    _, said = imported(line + "\n")
    assert any(message in sentence and lost for _, sentence, lost in said), said


def test_settings_are_said_once():
    _, said = imported("report_url=stdout\nreport_url=file:/x\ngzip_dbout=yes\n")
    assert [(line, lost) for line, _, lost in said] == [(1, False), (3, False)]


def test_bounds():
    _, said = imported("@@define A " + "a" * 9000 + "\n@@define B @@{A}@@{A}\n/@@{B} R\n")
    assert "is not carried" in str(said)
    _, said = imported("".join(f"/d/{number}$ R\n" for number in range(2700)))
    assert "more than 2600 watched paths" in str(said)


ATOMS = st.sampled_from(["a", "b", "/", "\\.", ".", "[ab]", "[^/]", "(a|b)", "(a|/b)", "x"])
MARKS = st.sampled_from(["", "", "", "*", "+", "?", "{2}"])
EXPRESSIONS = st.lists(st.tuples(ATOMS, MARKS).map("".join), min_size=1, max_size=6).map("".join)
NAMES = st.text(alphabet="ab.x", min_size=1, max_size=3).filter(lambda name: set(name) != {"."})
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda names: "/" + "/".join(names))


def parents(path):
    parts = path.split("/")[1:]
    return ["/" + "/".join(parts[:count]) for count in range(1, len(parts) + 1)]


@settings(max_examples=800, deadline=None)
@given(EXPRESSIONS, st.sampled_from(["", "$"]), PATHS)
def test_what_aide_selects_is_watched(expression, end, path):
    """But for names that only begin so, which is said, and for a dot that would be a slash, which nobody means."""
    text = f"/{expression}{end} R\n"
    policy, said = imported(text)
    if any(lost and "rules have no $" not in message for _, message, lost in said):
        return
    meant = re.sub(r"(?<!\\)\.(?![*+])", "[^/]", expression)
    if re.match(f"/{meant}(?:/|$)" if not end else f"/{meant}$", path):
        assert Plan(policy.watches).decide(path) is not None


@settings(max_examples=800, deadline=None)
@given(EXPRESSIONS, st.sampled_from(["", "$"]), PATHS)
def test_what_aide_watches_is_not_left_out(expression, end, path):
    policy, _ = imported(f"/a R\n/b R\n/x R\n!/{expression}{end}\n")
    if path[1] in "abx" and path.split("/")[1] in {"a", "b", "x"} and Plan(policy.watches).decide(path) is None:
        assert any(re.match(f"/{expression}{end}", place) for place in parents(path)), policy.watches


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="/ab(|)[]{}*+?.\\^$:!=12,", max_size=30), st.booleans())
def test_any_expression(text, wider):
    reason = "none"
    try:
        globs("/" + text, wider=wider)
    except NoGlob as why:
        reason = str(why)
    assert reason
