"""Which watch decides for a path: a table of paths and verdicts, and an oracle that walks it step by step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.model import Watch
from edgeguard.sensors.watching import Plan, glob_pattern, literal_root

WATCHES = [
    Watch("/", "root", only="setid", exclude=("/proc", "/var/lib/docker/**")),
    Watch("/etc", "config", exclude=("/etc/*.cache", "/etc/**/*.pyc", "/etc/skip")),
    Watch("/etc/cron.d", "cron"),
    Watch("/etc/ld.so.preload", "preload", recurse=False),
    Watch("/home/*/.ssh", "key"),
    Watch("/home/root-like/.ssh", "other"),
    Watch("/var/lib/docker/volumes/keep", "kept"),
    Watch("/srv/dir", "one", recurse=False),
]

VERDICTS = {
    "/etc": "config",
    "/etc/passwd": "config",
    "/etc/a.cache": None,
    "/etc/deep/a.cache": "config",
    "/etc/x.pyc": None,
    "/etc/a/b/x.pyc": None,
    "/etc/skip": None,
    "/etc/skip/below": None,
    "/etc/skipped": "config",
    "/etc/cron.d": "cron",
    "/etc/cron.d/x.pyc": "cron",
    "/etc/ld.so.preload": "preload",
    "/etc/ld.so.preload.d/x": "config",
    "/home/joe/.ssh": "key",
    "/home/joe/.ssh/id": "key",
    "/home/joe/.sshd": "root",
    "/home/root-like/.ssh/id": "other",
    "/home/.ssh": "root",
    "/proc": None,
    "/proc/1/exe": None,
    "/var/lib/docker": "root",
    "/var/lib/docker/x": None,
    "/var/lib/docker/volumes/keep/x": "kept",
    "/srv/dir": "one",
    "/srv/dir/file": "root",
    "/usr/bin/su": "root",
}


@pytest.mark.parametrize("path", VERDICTS)
def test_the_longest_path_decides(path):
    watch = Plan(WATCHES).decide(path)
    assert (watch.category if watch else None) == VERDICTS[path]


def test_without_a_watch_on_the_root():
    plan = Plan(WATCHES[1:])
    assert plan.decide("/usr/bin/su") is None
    assert plan.decide("/etc/passwd").category == "config"
    assert plan.top.names() == ["etc", "home", "srv", "var"]
    assert plan.zone("/home").names() is None  # a wildcard: it must be listed
    assert plan.zone("/usr").dead
    assert plan.zone("/etc/cron.d").plain


def test_an_exclusion_counts_for_the_names_of_a_wildcard_too():
    plan = Plan([Watch("/lib/guard*", "own", exclude=("**/*.dpkg-*",)), Watch("/lib", "unit")])
    assert plan.decide("/lib/guard.service").category == "own"
    assert plan.decide("/lib/guard.service.dpkg-tmp") is None
    assert plan.decide("/lib/guard.d/x.dpkg-new") is None


def test_the_order_of_watches_does_not_matter():
    turned = Plan(list(reversed(WATCHES)))
    for path, category in VERDICTS.items():
        watch = turned.decide(path)
        assert (watch.category if watch else None) == category


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("/a/*", ["/a/b", "/a/.b", "/a/b\nc"], ["/a", "/a/b/c", "/ab"]),
        ("/a/**", ["/a/b", "/a/b/c"], ["/a", "/b/a/c"]),
        ("**/x", ["/x", "/a/x", "/a/b/x"], ["/ax", "/a/x/b"]),
        ("/a/**/x", ["/a/x", "/a/b/c/x"], ["/a/bx"]),
        ("/a/?[0-9]", ["/a/b1"], ["/a/b", "/a//1", "/a/bb"]),
        ("/a/[!x]", ["/a/b"], ["/a/x", "/a//"]),
        ("/a/[", ["/a/["], ["/a/b"]),
        ("/a/[z-a]", ["/a/[z-a]"], ["/a/z"]),
        ("/a/(b|c)+", ["/a/(b|c)+"], ["/a/b"]),
    ],
)
def test_globs(glob, yes, no):
    pattern = glob_pattern(glob)
    assert [path for path in yes if not pattern.match(path)] == []
    assert [path for path in no if pattern.match(path)] == []


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="/ab*?[]!^-\\(", max_size=12))
def test_any_text_is_a_glob(glob):
    glob_pattern(glob).match("/a/b")
    Plan([Watch("/" + glob, "x", exclude=(glob,))]).decide("/a/b")


PARTS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(PARTS, st.booleans()), max_size=5, unique_by=lambda w: tuple(w[0])), PARTS)
def test_against_an_oracle(watched, path):
    watches = [Watch("/" + "/".join(parts), str(at), recurse=recurse) for at, (parts, recurse) in enumerate(watched)]
    matching = [
        (len(parts), str(at))
        for at, (parts, recurse) in enumerate(watched)
        if parts == path or (recurse and path[: len(parts)] == parts)
    ]
    found = Plan(watches).decide("/" + "/".join(path))
    assert (found.category if found else None) == (max(matching)[1] if matching else None)


def test_literal_root():
    assert literal_root("/home/*/.ssh") == "/home"
    assert literal_root("/etc/x") == "/etc/x"
    assert literal_root("/") == "/"
    assert literal_root("/[ab]/c") == "/"
