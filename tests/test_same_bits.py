import numpy as np
import torch

from tests.same_bits.__main__ import differences
from tests.same_bits.digests import digest, numbers


def test_a_digest_that_differs_or_is_missing_is_a_difference():
    base = {"loss": "a", "gradient": "b", "gone": "c"}
    assert differences(base, {"loss": "a", "gradient": "x", "new": "c"}) == ["gone", "gradient", "new"]
    assert differences(base, base) == []


def test_a_digest_tells_the_last_bit_the_sign_of_zero_the_dtype_and_the_shape():
    values = torch.tensor([1.0, 0.0])
    others = [
        torch.nextafter(values, torch.tensor(2.0)),
        torch.tensor([1.0, -0.0]),
        values.double(),
        values.reshape(2, 1),
        values.bfloat16(),
    ]
    assert len({digest(value) for value in (values, *others)}) == 1 + len(others)
    assert digest(values) == digest(values.clone()) == digest(torch.stack([values, values], 1)[:, 0])
    assert digest(np.zeros(3, np.uint8)) != digest(np.zeros(3, np.int8))


def test_numbers_of_scores_do_not_depend_on_the_order_of_keys():
    assert numbers({"b": [1, True, {"dice": 0.5}], "a": "text", "schema": 3}) == [1, 0.5]
