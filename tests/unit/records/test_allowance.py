"""Budgets of the uplink: bytes a day and a rate, of which the backlog gets half; over runs, whatever the clock does."""

from hypothesis import given
from hypothesis import strategies as st

from edgeguard.records.allowance import BURST_S, DAY_MS, FREE, Allowance, Books

T = 1_795_000_000_000


def test_without_bounds_there_is_no_end():
    free = Allowance(0, 0, Books(), T)
    for _ in range(3):
        assert free.left(backlog=True) == free.left(backlog=False) == FREE
        free.spend(1 << 40, 1 << 40)


def test_a_day_has_its_bytes_and_the_backlog_half_of_them():
    day = Allowance(100_000, 0, Books(), T)
    assert (day.left(backlog=False), day.left(backlog=True)) == (100_000, 50_000)
    day.spend(60_000, 50_000)
    assert (day.left(backlog=False), day.left(backlog=True)) == (40_000, 0)
    assert day.wait(backlog=True) == DAY_MS // 1000 + 1
    again = Allowance(100_000, 0, day.books, T + DAY_MS - 1)
    assert (again.left(backlog=False), again.left(backlog=True)) == (40_000, 0)
    assert again.wait(backlog=True) == 1
    next_day = Allowance(100_000, 0, day.books, T + DAY_MS)
    assert (next_day.left(backlog=False), next_day.left(backlog=True)) == (100_000, 50_000)


def test_a_clock_that_was_set_begins_a_new_day():
    spent = Allowance(1000, 0, Books(), T)
    spent.spend(1000, 0)
    for now in (T - 1, 0, T + 30 * DAY_MS):
        assert Allowance(1000, 0, spent.books, now).left(backlog=False) == 1000


def test_a_rate_holds_a_minute_and_comes_back():
    rate = Allowance(0, 1000, Books(), T)
    assert (rate.left(backlog=False), rate.left(backlog=True)) == (60_000, 30_000)
    rate.spend(90_000, 40_000)  # a segment larger than the bucket went all the same, and is paid for
    assert rate.left(backlog=False) == rate.left(backlog=True) == 0
    assert rate.wait(backlog=False) == 61
    assert rate.wait(backlog=True) == 61
    later = Allowance(0, 1000, rate.books, T + 61_000)
    assert later.left(backlog=False) == 31_000
    assert later.left(backlog=True) == 20_500
    assert Allowance(0, 1000, rate.books, T - 5000).left(backlog=False) == 0  # a clock set back earns nothing


@given(
    st.lists(
        st.tuples(st.integers(0, 600_000), st.integers(1, 300_000), st.booleans(), st.booleans()),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 50_000),
    st.integers(1, 5_000_000),
)
def test_whatever_is_sent_when_the_averages_hold(sends, rate, day):
    """Each send as large as it likes (a segment), whenever there is anything left; runs begin and end at any time."""
    account, now, total, backlogged, largest, today, began = Allowance(day, rate, Books(), T), T, 0, 0, 0, 0, T
    for passed, size, backlog, restart in sends:
        now += passed
        if restart:
            account = Allowance(day, rate, account.books, now)
        account.tick(now)
        if now - began >= DAY_MS:
            began, today = now, 0
        if account.left(backlog=backlog):
            account.spend(size, size if backlog else 0)
            total, today, largest = total + size, today + size, max(largest, size)
            backlogged += size if backlog else 0
        seconds = (now - T) / 1000
        assert total <= rate * (BURST_S + seconds) + largest
        assert backlogged <= rate / 2 * (BURST_S + seconds) + largest + 1
        assert today <= day + largest
        assert account.wait(backlog=backlog) >= 1
