"""When snapshots are due."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectra.store.schedule import Schedule
from spectra_data.errors import InputError


@pytest.mark.parametrize(
    ("every", "steps", "expected"),
    [(3, 7, [0, 3, 6, 7]), (3, 6, [0, 3, 6]), (10, 4, [0, 4]), (1, 2, [0, 1, 2])],
)
def test_the_schedule_has_first_and_last_state(every, steps, expected):
    schedule = Schedule.of(every, steps=steps)
    assert [s for s in range(steps + 1) if schedule.due(s)] == expected
    assert schedule.snapshots == len(expected)


def test_early_snapshots_double_until_the_regular_ones_begin():
    schedule = Schedule.of(100, early=True, steps=250)
    assert schedule.between(0, 250) == [0, 1, 2, 4, 8, 16, 32, 64, 100, 200, 250]
    assert not schedule.due(128)


def test_a_list_of_steps_is_all_there_is():
    schedule = Schedule.of([5, 0, 2, 5], steps=9)
    assert schedule.between(0, 9) == [0, 2, 5]
    assert schedule.snapshots == 3
    assert not schedule.due(9)
    assert Schedule.of([5, 0], steps=None).snapshots == 2


@given(
    st.integers(1, 50),
    st.booleans(),
    st.integers(1, 300),
    st.none() | st.lists(st.integers(0, 300), min_size=1),
)
def test_what_is_due_is_what_is_announced(every, early, steps, at):
    if at is not None:
        at = tuple(step for step in at if step <= steps) or (0,)
    schedule = Schedule(every, early and at is None, at, steps)
    due = [step for step in range(steps + 1) if schedule.due(step)]
    assert schedule.between(0, steps) == due
    assert schedule.snapshots == len(due)
    assert Schedule.from_dict(schedule.to_dict()) == schedule
    first = steps // 3
    assert schedule.between(first, steps) == [step for step in due if step >= first]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0, "steps": 10}, "every 1 or more steps"),
        ({"every": -1, "steps": None}, "every 1 or more steps"),
        ({"every": 5, "steps": 0}, "at least 1 step"),
        ({"every": [], "steps": 5}, "numbers of at least 0"),
        ({"every": [-1], "steps": 5}, "numbers of at least 0"),
        ({"every": [6], "steps": 5}, "at step 6: the run has 5 steps"),
        ({"every": [1], "steps": 5, "early": True}, "go with a number of steps"),
    ],
)
def test_impossible_schedules_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Schedule.of(**arguments)
