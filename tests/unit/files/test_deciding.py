"""Which line decides about a path: against the precedence as it is documented, and against what sweeps do."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeguard.baseline.policy import parse
from edgeguard.model import Watch
from edgeguard.sensors.deciding import decision
from edgeguard.sensors.watching import Plan, glob_pattern

POLICY = b"""[[watch]]
path = "/"
category = "other"
only = "setid"
exclude = ["/proc"]

[[watch]]
path = ["/etc", "/opt"]
category = "config"
exclude = [
    "**/*.dpkg-*", "/etc/mtab",
    "/etc/cache",
]

[[watch]]
path = "/etc/cache/keep"
category = "key"
"""
SITE = b"""[[watch]]
path = "/etc/site"
off = true
"""


def lines(path):
    plan = Plan(parse([("10.toml", POLICY), ("50.toml", SITE)]).watches)
    found = decision(plan, path)
    return found.source, found.glob, found.at, found.watched


def test_the_line_that_decides():
    assert lines("/etc/passwd") == ("10.toml:7", "", "", True)
    assert lines("/etc/x.dpkg-old") == ("10.toml:11", "**/*.dpkg-*", "/etc/x.dpkg-old", False)
    assert lines("/etc/x.dpkg-old/a/b") == ("10.toml:11", "**/*.dpkg-*", "/etc/x.dpkg-old", False)
    assert lines("/etc/mtab") == ("10.toml:11", "/etc/mtab", "/etc/mtab", False)
    assert lines("/etc/cache/x") == ("10.toml:12", "/etc/cache", "/etc/cache", False)
    assert lines("/etc/cache/keep/x") == ("10.toml:15", "", "", True)
    assert lines("/etc/site/x/y") == ("50.toml:1", "/etc/site", "/etc/site", False)
    assert lines("/proc/1/exe") == ("10.toml:5", "/proc", "/proc", False)
    assert lines("/srv") == ("10.toml:1", "", "", True)
    assert lines("/") == ("10.toml:1", "", "", True)


def test_off_counts_below_wildcards_too():
    policy = b'[[watch]]\npath = "/home/*/.ssh"\ncategory = "key"\n'
    site = b'[[watch]]\npath = ["/home/joe/.ssh", "/home/ann/.ssh/old", "/home/*/.ssh/tmp"]\noff = true\n'
    plan = Plan(parse([("10.toml", policy), ("50.toml", site)]).watches)
    for path in ("/home/joe/.ssh", "/home/joe/.ssh/id", "/home/ann/.ssh/old/x", "/home/x/.ssh/tmp"):
        assert plan.decide(path) is None
        assert decision(plan, path).source == "50.toml:1"
    for path in ("/home/ann/.ssh/id", "/home/joey/.ssh"):
        assert plan.decide(path) is not None


def test_nothing_covers_it():
    found = decision(Plan([Watch("/etc", "config")]), "/srv/x")
    assert (found.watch, found.watched, found.source, found.glob) == (None, False, "", "")


PARTS = ["a", "b", "ab", "*", "a*", "?"]
PATHS = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=4)
GLOBS = st.sampled_from(["**/b", "/a/b", "/a/*", "/ab/**", "**/ab", "/*/a", "/a", "/b"])
WATCHED = st.tuples(
    st.lists(st.sampled_from(PARTS), max_size=3), st.booleans(), st.lists(GLOBS, max_size=2, unique=True)
)


def matches(pattern, parts):
    return len(pattern) <= len(parts) and all(
        glob_pattern("/" + one).match("/" + other) for one, other in zip(pattern, parts, strict=False)
    )


def documented(watched, parts):
    """As docs/policy.md says it: the deepest watch that matches; among those the one that is literal where the other
    has a wildcard, from the left. Its exclusions count for the path and for the directories down to it."""
    matching = [
        (pattern, exclude)
        for pattern, recurse, exclude in watched
        if matches(pattern, parts) and (len(pattern) == len(parts) or recurse)
    ]
    if not matching:
        return None

    def rank(item):
        return len(item[0]), [not set(part) & set("*?") for part in item[0]]

    best = max(map(rank, matching))
    found = [item for item in matching if rank(item) == best]
    if len(found) > 1:
        return ...  # two wildcards that both match: not said
    pattern, exclude = found[0]
    places = ["/" + "/".join(parts[:count]) for count in range(max(1, len(pattern)), len(parts) + 1)]
    if any(glob_pattern(glob).match(place) for glob in exclude for place in places):
        return None
    return "/" + "/".join(pattern)


@settings(max_examples=600, deadline=None)
@given(st.lists(WATCHED, max_size=5, unique_by=lambda item: tuple(item[0])), PATHS)
@example([(["a*"], True, ["**/ab"])], ["ab", "a"])
@example([(["a"], True, ["/a/b"]), (["a", "b", "a"], True, [])], ["a", "b", "a", "b"])
def test_precedence(watched, parts):
    watches = [
        Watch("/" + "/".join(pattern), "other", tuple(exclude), recurse) for pattern, recurse, exclude in watched
    ]
    path = "/" + "/".join(parts)
    plan = Plan(watches)
    found = plan.decide(path)
    explained = decision(plan, path)
    assert explained.watch is found if found is not None else not explained.watched
    if explained.glob:
        assert glob_pattern(explained.glob).match(explained.at)
        assert path == explained.at or path.startswith(explained.at + "/")
    wanted = documented(watched, parts)
    if wanted is not ...:
        assert (found.path if found is not None else None) == wanted
