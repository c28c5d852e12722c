"""The time left: never negative, nothing at the end, and true once the pace is known."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from itkstream.progress.forecast import Forecast
from itkstream.progress.reporters import Part

seconds = st.floats(0.0, 1e4)
parts = st.lists(seconds, min_size=1, max_size=12)
calls = st.lists(st.tuples(st.floats(0.0, 1e3), st.integers(-1, 10)), max_size=30)


def planned(prices):
    return [Part(str(number), price) for number, price in enumerate(prices)]


@given(parts, calls)
@example([2e-313], [(0.0, -1), (1.0, 0)])
@example([0.0, 2e-313, 1.0], [(0.0, 0), (0.0, -1), (1.0, 0)])
def test_it_is_never_negative_and_nothing_at_the_end(prices, told):
    forecast, now = Forecast(planned(prices)), 0.0
    for number, (waited, done) in enumerate(told):
        now += waited
        if done < 0:
            forecast.begin(str(number), now)
        else:
            forecast.blocks(done, 10, now)
        assert 0.0 <= forecast.left(now) < float("inf")
    forecast.finish(now)
    assert forecast.left(now + 1.0) == 0.0


@given(st.lists(st.floats(0.1, 1e3), min_size=4, max_size=12), st.floats(0.1, 20.0))
def test_a_machine_that_is_slower_than_planned_is_found_out(prices, slower):
    forecast, now = Forecast(planned(prices)), 0.0
    for number, price in enumerate(prices):
        forecast.begin(str(number), now)
        done, rest = sum(prices[:number]), sum(prices[number:])
        # The plan is believed as if a tenth of what is to come had gone by it.
        belief = 0.1 * rest
        pace = (slower * done + belief) / (done + belief)
        assert forecast.left(now) == pytest.approx(pace * rest)
        now += slower * price


def test_blocks_tell_before_the_part_ends():
    forecast = Forecast(planned([100.0]))
    forecast.begin("0", 0.0)
    forecast.blocks(0, 10, 0.0)
    assert forecast.left(0.0) == pytest.approx(100.0)
    forecast.blocks(9, 10, 270.0)
    assert forecast.left(270.0) == pytest.approx(30.0, rel=0.02)


def test_what_an_earlier_run_did_says_nothing_of_the_pace():
    forecast = Forecast(planned([100.0, 100.0, 50.0]))
    forecast.begin("0", 0.0)
    forecast.blocks(1, 1, 0.0)
    forecast.begin("1", 0.0)
    forecast.blocks(5, 10, 0.0)
    assert forecast.left(0.0) == pytest.approx(100.0)
    forecast.blocks(10, 10, 100.0)
    forecast.begin("2", 100.0)
    assert forecast.left(100.0) == pytest.approx(100.0, rel=0.1)


def test_parts_that_never_began_are_left_out_and_unknown_ones_change_nothing():
    forecast = Forecast(planned([10.0, 1000.0, 10.0]))
    assert forecast.begin("0", 0.0) == 1
    assert forecast.begin("advice", 5.0) is None
    assert forecast.begin("2", 10.0) == 3
    assert forecast.left(10.0) == pytest.approx(10.0)
