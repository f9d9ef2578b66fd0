from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from smile_fast.supervision import Policy, State, build_tables

A, M, X, H = State.ANNOTATED, State.MISSING, State.ABSENT, State.HIDDEN


def bits(table: Tensor, organs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return known and positive, [256, K] bool each, of one image."""
    words = table.numpy().view(np.uint32).astype(np.uint64)  # [256, 2, words]
    unpacked = np.stack([words[:, :, k // 32] >> np.uint64(k % 32) & np.uint64(1) for k in range(organs)], axis=-1)
    return unpacked[:, 0].astype(bool), unpacked[:, 1].astype(bool)


def rule(value: int, k: int, states: list[State], policy: Policy, pseudo_negative: bool) -> tuple[bool, bool]:
    """Say whether organ k is known and positive at a label value, in the words of the specification."""
    organs = len(states)
    organ, pseudo = value & 0x7F, value >= 0x80
    declared = states[k] in (A, X)
    if value == 255 or organ > organs:
        return False, False
    if value == 0x80:
        return True, False
    unlabelled = policy is Policy.NAIVE or declared, False
    if value == 0:
        return unlabelled
    state = states[organ - 1]
    own = k == organ - 1
    if pseudo:
        if state in (A, X):
            return unlabelled
        return policy is Policy.NAIVE or declared or own or pseudo_negative, own
    if state is H:
        return unlabelled
    if policy is Policy.NO_EPSILON:
        return declared or own, own
    return policy is not Policy.CHANNEL_DROP or declared, own


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("pseudo_negative", [False, True])
def test_every_row_for_every_combination_of_three_states(policy: Policy, pseudo_negative: bool) -> None:
    cases = [list(states) for states in product(State, repeat=3)]
    tables = build_tables(cases, policy, pseudo_negative=pseudo_negative)
    assert tables.shape == (64, 256, 2, 1)
    assert tables.dtype == torch.int32
    for states, table in zip(cases, tables, strict=True):
        known, positive = bits(table, 3)
        for value, k in product(range(256), range(3)):
            expected = rule(value, k, states, policy, pseudo_negative)
            assert (known[value, k], positive[value, k]) == expected, (states, value, k)
        assert (table.numpy().view(np.uint32) < 8).all(), "bits of organs that do not exist"


@pytest.mark.parametrize("organs", [31, 32, 33, 64, 65, 126])
def test_words_of_many_organs(organs: int) -> None:
    states = [list(State)[k % 4] for k in range(organs)]
    table = build_tables([states], Policy.SMILE)
    assert table.shape == (1, 256, 2, -(-organs // 32))
    known, positive = bits(table[0], organs)
    for value, k in product([0, 1, 31, 32, 33, 64, organs, 0x80 | 2, 0x80 | organs, 254, 255], range(organs)):
        assert (known[value, k], positive[value, k]) == rule(value, k, states, Policy.SMILE, False), (value, k)


def row(states: list[State], policy: Policy, value: int, pseudo_negative: bool = False) -> tuple[list[int], list[int]]:
    """Return the organs, from 1, that are known and that are positive at a label value."""
    tables = build_tables([states], policy, pseudo_negative=pseudo_negative)
    known, positive = bits(tables[0], len(states))
    return (np.flatnonzero(known[value]) + 1).tolist(), (np.flatnonzero(positive[value]) + 1).tolist()


def test_the_paper_by_example() -> None:
    states = [A, M, X, H]  # liver drawn, pancreas not, spleen removed, stomach drawn but hidden
    assert row(states, Policy.SMILE, 0) == ([1, 3], [])
    assert row(states, Policy.SMILE, 1) == ([1, 2, 3, 4], [1])  # liver: certain negative of all others
    assert row(states, Policy.CHANNEL_DROP, 1) == ([1, 3], [1])
    assert row(states, Policy.SMILE, 2) == ([1, 2, 3, 4], [2])  # what was drawn of the pancreas
    assert row(states, Policy.SMILE, 4) == row(states, Policy.SMILE, 0)  # hidden: as if it were not drawn
    assert row(states, Policy.NAIVE, 0) == ([1, 2, 3, 4], [])
    assert row(states, Policy.NAIVE, 4) == ([1, 2, 3, 4], [])
    assert row(states, Policy.NAIVE, 255) == ([], [])


def test_pseudo_labels_by_example() -> None:
    states = [A, M, X, H]
    assert row(states, Policy.SMILE, 0x80 | 2) == ([1, 2, 3], [2])  # no word about the other missing organs
    assert row(states, Policy.SMILE, 0x80 | 2, pseudo_negative=True) == ([1, 2, 3, 4], [2])
    assert row(states, Policy.CHANNEL_DROP, 0x80 | 4) == ([1, 3, 4], [4])
    assert row(states, Policy.SMILE, 0x80 | 1) == row(states, Policy.SMILE, 0)  # the annotation knows better


def test_all_annotated_smile_is_naive() -> None:
    cases = [[A] * 13, [X] * 13]
    assert torch.equal(build_tables(cases, Policy.SMILE), build_tables(cases, Policy.NAIVE))


def test_tables_are_the_callers_own() -> None:
    first = build_tables([[A, M]], "smile")
    first.zero_()
    assert build_tables([["annotated", "missing"]], Policy.SMILE).any()


@pytest.mark.parametrize(
    ("states", "policy", "message"),
    [
        ([], "smile", "states must describe at least one image, got none"),
        ([[A], [A, A]], "smile", r"states\[1\] names 2 organs, states\[0\] names 1"),
        ([[A], [None]], "smile", r"states\[1\]\[0\] must be one of annotated, .*, got None"),
        ([[]], "smile", r"states\[0\] must name 1 to 126 organs, got 0"),
        ([[A]], "marginal", "policy must be one of smile, no-epsilon, channel-drop, naive, got 'marginal'"),
    ],
)
def test_wrong_input_is_refused(states: list[list[State]], policy: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_tables(states, policy)
