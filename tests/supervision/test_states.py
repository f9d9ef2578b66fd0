import subprocess
import sys

import numpy as np
import pytest

from smile_fast.supervision import Policy, State, visible_lut
from smile_runtime.label_map import MAX_ORGANS, PSEUDO_BIT, VOID


def test_words_of_the_files() -> None:
    assert [state.value for state in State] == ["annotated", "missing", "absent", "hidden"]
    assert [policy.value for policy in Policy] == ["smile", "no-epsilon", "channel-drop", "naive"]
    assert (VOID, PSEUDO_BIT) == (255, 128)
    assert PSEUDO_BIT | MAX_ORGANS < VOID <= PSEUDO_BIT | (MAX_ORGANS + 1)


def test_training_sees_everything_but_hidden_organs() -> None:
    lut = visible_lut([State.ANNOTATED, State.HIDDEN, State.MISSING, State.ABSENT, State.HIDDEN])
    expected = np.arange(256)
    expected[[2, 5]] = 0
    assert lut.dtype == np.uint8
    assert lut.tolist() == expected.tolist()


def test_names_are_as_good_as_states() -> None:
    assert np.array_equal(visible_lut(["hidden", "annotated"]), visible_lut([State.HIDDEN, State.ANNOTATED]))


@pytest.mark.parametrize(
    ("states", "kind", "message"),
    [
        ([], ValueError, "states must name 1 to 126 organs, got 0"),
        ([State.ANNOTATED] * 127, ValueError, "states must name 1 to 126 organs, got 127"),
        (["annotated", "unknown"], ValueError, r"states\[1\] must be one of annotated, .*, got 'unknown'"),
        ("annotated", TypeError, "got the string 'annotated'"),
    ],
)
def test_wrong_states_are_refused(states: list[str], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        visible_lut(states)


def test_importing_the_vocabulary_does_not_import_torch() -> None:
    code = "import sys, smile_fast.supervision as s; s.visible_lut(['hidden']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
