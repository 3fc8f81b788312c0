import hashlib

import numpy as np
import pytest

from hf_ppl_select.selection.row_hash import uniform_numbers


def splitmix64(key, seed):
    """The same in plain Python, from the published constants."""
    start = int.from_bytes(
        hashlib.blake2b(str(seed).encode(), digest_size=8, person=b"hf_ppl_select").digest(), "little"
    )
    bits = ((key + start) * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return ((bits ^ bits >> 31) >> 11) / 2**53


def test_whole_numbers_are_mixed_as_documented():
    keys = [0, 1, -1, 2**63 - 1, -(2**63), 123_456_789]
    expected = [splitmix64(key % 2**64, 5) for key in keys]
    assert uniform_numbers(np.array(keys), 5).tolist() == expected
    assert uniform_numbers(np.array([2**64 - 1], dtype=np.uint64), 5)[0] == expected[2]


def test_what_holds_a_key_does_not_matter():
    keys = [3, 70_000, 0, 12]
    expected = uniform_numbers(np.array(keys), 0).tolist()
    for same in (
        keys,
        tuple(keys),
        np.array(keys, dtype=np.int32),
        np.array(keys, dtype=object),
        np.array(keys, float),
    ):
        assert uniform_numbers(same, 0).tolist() == expected
    with_gap = uniform_numbers(np.array([3.0, np.nan]), 0)  # an integer column with a null, read as floats
    assert with_gap.tolist() == uniform_numbers([3, None], 0).tolist()
    assert uniform_numbers(["3"], 0)[0] != expected[0] and uniform_numbers([True], 0)[0] != splitmix64(1, 0)
    assert uniform_numbers([2**70, -(2**70)], 0).shape == (2,)
    assert uniform_numbers([], 0).shape == (0,)


@pytest.mark.parametrize("kind", ["consecutive", "multiples of 2^32", "texts"])
def test_uniform_and_independent_over_seeds_and_neighbours(kind):
    keys = {
        "consecutive": np.arange(50_000),
        "multiples of 2^32": np.arange(50_000) << 32,
        "texts": [f"text {i}" for i in range(50_000)],
    }[kind]
    first, second = uniform_numbers(keys, 0), uniform_numbers(keys, 1)
    for numbers in (first, second):
        counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
        assert np.sum((counts - 1000) ** 2 / 1000) < 90  # chi-square with 49 degrees of freedom: 1 in 4,000
    bound = 4 / np.sqrt(50_000)
    assert abs(np.corrcoef(first, second)[0, 1]) < bound
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < bound


def test_keys_without_a_text_form_are_named():
    with pytest.raises(TypeError, match="Column 'id' holds object"):
        uniform_numbers([object()], 0, "id")
