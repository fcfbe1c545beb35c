import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.data.codes import present


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_the_codes_that_are_present_are_the_distinct_ones(first, second):
    one, other = np.array(first, dtype=np.int64), np.array(second, dtype=np.int64)
    distinct = np.unique(np.concatenate([one, other])).tolist()

    assert np.flatnonzero(present(one, other)).tolist() == distinct
    assert np.flatnonzero(present(one, other, size=12)).tolist() == distinct
    assert len(present(one, other)) == max(distinct, default=-1) + 1
    assert len(present(one, other, size=12)) == 12
