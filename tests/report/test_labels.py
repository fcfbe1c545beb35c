"""Names beside marks: none on another, each as near its mark as that allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.report.labels import apart

places = st.floats(0, 100).map(lambda x: round(x, 3))
boxes = st.lists(
    st.tuples(places, st.floats(1, 30), places).map(lambda b: (b[0], b[0] + b[1], b[2])), max_size=8
)


@pytest.mark.parametrize(
    ("boxes", "middles"),
    [
        ([], []),
        ([(0, 10, 50)], [50]),
        ([(0, 10, 50), (5, 15, 50)], [48, 52]),
        ([(0, 10, 50), (11, 20, 50)], [50, 50]),
        ([(0, 10, 50), (5, 15, 60)], [50, 60]),
        ([(5, 15, 51), (0, 10, 50), (9, 30, 20)], [52.5, 48.5, 20]),
    ],
)
def test_labels_move_no_farther_than_they_must(boxes, middles):
    assert apart(boxes, 4) == pytest.approx(middles)


@given(boxes)
def test_no_label_lies_on_another(boxes):
    middles = apart(boxes, 4)

    for i, (left, right, _) in enumerate(boxes):
        for j, (other_left, other_right, _) in enumerate(boxes[:i]):
            if left < other_right and other_left < right:
                assert abs(middles[i] - middles[j]) >= 4 - 1e-6
