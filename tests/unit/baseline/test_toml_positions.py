"""Positions in TOML, with tomllib as the oracle."""

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.baseline.toml_positions import line_column, locate, source_line

TEXTS = [
    "",
    "a = 1",
    "a = 1 # c\n[b]\nc = 'x' \n",
    '# only\n[a."b.c".d]\ne . f = [1, 2, # three\n 3,\n]\n',
    '[[w]]\np = "/"\n[[w]]\np = ["/a", "/b"]\n[w.sub]\nx = true\n[[w.deep]]\ny=1\n[[w.deep]]\ny = 2\n',
    '[r]\nwhere = { category = "program", n = { not_in = [1, 2] }, e = {} }\nexpect = {a.b = 1}\n',
    'a = """\nx " "" \\""" y"""""\nb = \'\'\'z\'\'\'\'\'\nc = 07:32:00\nd = 1979-05-27 07:32:00\n',
    'f = 3.5e+10\ng = inf\nh = 0xff\n"" = 1\n"k\\u00e9\\t\\"" = 2\n\'l"\' = 3\n',
    "a = [[1, 2], [], [{b = 1}, {c = [2]}]]\r\nb = 1\r\n",
    "t = { a = 1, b = [ { c = 'd' } ] }",
    "[a.b]\nx = 1\n[a]\ny = 2\n[c.d.e]\n",
]


def walk(value, path=()):
    if path:
        yield path, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from walk(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from walk(item, (*path, index))


def check(text):
    places = locate(text)
    paths = dict(walk(tomllib.loads(text)))
    assert set(places) == set(paths)
    for path, value in paths.items():
        place = places[path]
        if not isinstance(value, dict | list):
            alone = tomllib.loads("x = " + text[place.value : place.end])["x"]
            assert alone == value
        assert 0 <= place.key <= place.value <= place.end <= len(text)


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_at_every_position_is_the_value(text):
    check(text.replace("\r\n", "\n"))
    if "\r" in text:
        tomllib.loads(text)
        assert locate(text)


def quoted(text):
    return '"' + "".join(f"\\U{ord(c):08X}" if not c.isalnum() or ord(c) > 126 else c for c in text) + '"'


texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)
scalars = (
    st.integers(-(2**40), 2**40).map(str)
    | st.sampled_from(["true", "false", "1.5", "1979-05-27", "07:32:00", "'lit#eral'", "'''a'b\nc'''", '"""a"b\n"""'])
    | texts.map(quoted)
)
keys = st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True) | texts.map(quoted) | st.just("'q.x'")
arrays = st.recursive(
    scalars,
    lambda inner: (
        st.tuples(st.lists(inner, max_size=3), st.sampled_from([", ", ",", " ,\n # [c]\n "])).map(
            lambda pair: "[" + pair[1].join(pair[0]) + "]"
        )
        | st.dictionaries(keys, inner.filter(lambda text: "\n" not in text), max_size=3).map(
            lambda table: "{" + ", ".join(f"{key} = {value}" for key, value in table.items()) + "}"
        )
    ),
    max_leaves=6,
)
pairs = st.tuples(st.lists(keys, min_size=1, max_size=3).map(" . ".join), arrays).map(lambda p: f"{p[0]} = {p[1]}")
headers = st.lists(keys, min_size=1, max_size=3).map(".".join)
lines = pairs | headers.map(lambda key: f"[{key}]") | headers.map(lambda key: f"[[ {key} ]]") | st.just("# x = [")


@settings(max_examples=200, deadline=None)
@given(st.lists(lines, max_size=8))
def test_any_valid_text(parts):
    text = ""
    for part in parts:  # keep what tomllib accepts, so that most examples say something
        longer = f"{text}{part}  # end\n"
        try:
            tomllib.loads(longer)
        except tomllib.TOMLDecodeError:
            continue
        text = longer
    check(text)


def test_lines_and_columns():
    text = "a = 1\n  b = 'x'\n"
    place = locate(text)["b",]
    assert line_column(text, place.key) == (2, 3)
    assert line_column(text, place.value) == (2, 7)
    assert source_line(text, 2) == "  b = 'x'"
    assert source_line(text, 9) == ""
