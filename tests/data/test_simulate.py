import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smile_fast.data.simulate import hidden_count, simulate_missing
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError

CASES = [f"case_{number:02}" for number in range(20)]
ORGANS = ["liver", "pancreas", "spleen"]
FULL = {case: dict.fromkeys(ORGANS, State.ANNOTATED) for case in CASES}


def hidden(declarations, organ="liver"):
    return {case for case, states in declarations.items() if states[organ] is State.HIDDEN}


@pytest.mark.parametrize(
    ("alpha", "n", "count"),
    [
        (0.0, 10, 0),
        (0.7, 10, 7),
        (0.7, 32, 22),
        (0.25, 10, 3),  # a half goes up
        (0.145, 100, 15),  # 14.499999999999998 in binary
        (0.5, 1, 0),  # the last annotation stays
        (1.0, 10, 9),
        (0.99, 3, 2),
        (0.3, 0, 0),
    ],
)
def test_hides_an_exact_share(alpha, n, count):
    assert hidden_count(alpha, n) == count
    declarations = {case: {"liver": State.ANNOTATED} for case in map(str, range(n))}
    assert len(hidden(simulate_missing(declarations, alpha, 0, list(declarations)))) == count


@settings(max_examples=30, deadline=None)
@given(
    low=st.floats(0, 1, allow_nan=False),
    high=st.floats(0, 1, allow_nan=False),
    seed=st.integers(0, 2**32),
)
def test_is_nested_and_idempotent(low, high, seed):
    low, high = sorted((low, high))
    few = simulate_missing(FULL, low, seed, CASES)
    many = simulate_missing(FULL, high, seed, CASES)
    for organ in ORGANS:
        assert hidden(few, organ) <= hidden(many, organ)
        assert len(hidden(many, organ)) < len(CASES)
    assert simulate_missing(many, low, seed, CASES) == few
    assert simulate_missing(few, high, seed, list(reversed(CASES))) == many
    assert simulate_missing(many, 0.0, seed, CASES) == FULL


def test_seeds_and_organs_are_independent():
    first = simulate_missing(FULL, 0.5, 0, CASES)
    assert hidden(first) != hidden(simulate_missing(FULL, 0.5, 1, CASES))
    assert hidden(first) != hidden(first, "pancreas")
    without_liver = {case: {"pancreas": State.ANNOTATED} for case in CASES}
    assert hidden(simulate_missing(without_liver, 0.5, 0, CASES), "pancreas") == hidden(first, "pancreas")


def test_leaves_other_states_and_other_cases_alone():
    declarations = {case: dict(states) for case, states in FULL.items()}
    declarations["case_00"]["liver"] = State.MISSING
    declarations["case_01"]["liver"] = State.ABSENT
    declarations["case_19"]["liver"] = State.HIDDEN
    given_states = {case: dict(states) for case, states in declarations.items()}
    result = simulate_missing(declarations, 1.0, 3, CASES[:12])
    assert declarations == given_states
    assert result["case_00"]["liver"] is State.MISSING
    assert result["case_01"]["liver"] is State.ABSENT
    assert len(hidden(result) & set(CASES[:12])) == 9
    assert {case: result[case] for case in CASES[12:]} == {case: declarations[case] for case in CASES[12:]}


@pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan, math.inf])
def test_refuses_alpha(alpha):
    with pytest.raises(InputError, match=r"^--alpha: .* is not a share of annotations; give a number in 0\.\.1$"):
        simulate_missing(FULL, alpha, 0, CASES)


def test_refuses_a_negative_seed():
    with pytest.raises(InputError, match="--seed: -1 is negative; give 0 or more"):
        simulate_missing(FULL, 0.5, -1, CASES)
