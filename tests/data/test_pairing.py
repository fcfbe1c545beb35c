import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.data.pairing import make_pairs

INTERACTIONS = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=5),
    max_size=12,
)


def _arrays(interactions):
    sizes = [len(responses) for responses in interactions]
    flat = [response for responses in interactions for response in responses]
    return (
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.array([score for score, _ in flat], dtype=np.float64),
        np.array([text for _, text in flat], dtype=np.uint64),
    )


def test_a_higher_score_is_chosen_and_equal_scores_and_texts_make_no_pair():
    # scores 80, 20, 80, 50; the first and the last have one text
    offsets, scores, hashes = _arrays([[(80, 1), (20, 2), (80, 3), (50, 1)]])

    pairs = make_pairs(offsets, scores, hashes, np.arange(1), min_gap=0)

    found = zip(pairs.chosen_responses.tolist(), pairs.rejected_responses.tolist(), strict=True)
    assert list(found) == [(0, 1), (2, 1), (3, 1), (2, 3)]
    assert pairs.ties.tolist() == [1]
    assert pairs.equal_texts.tolist() == [1]


@given(INTERACTIONS, st.data())
def test_pairs_are_those_of_the_definition(interactions, data):
    offsets, scores, hashes = _arrays(interactions)
    rows = [row for row in range(len(interactions)) if data.draw(st.booleans())]

    pairs = make_pairs(offsets, scores, hashes, np.array(rows, dtype=np.int64), min_gap=0)

    expected, ties, equal_texts = set(), [], []
    for row in rows:
        responses = interactions[row]
        ordered = [(i, j) for i in range(len(responses)) for j in range(len(responses)) if i != j]
        for i, j in ordered:
            if responses[i][0] > responses[j][0] and responses[i][1] != responses[j][1]:
                expected.add((row, i, j))
        ties.append(sum(responses[i][0] == responses[j][0] for i, j in ordered) // 2)
        equal_texts.append(sum(responses[i][1] == responses[j][1] for i, j in ordered) // 2)
    columns = (pairs.interactions, pairs.chosen_responses, pairs.rejected_responses)
    found = list(zip(*(column.tolist() for column in columns), strict=True))
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert pairs.interactions.tolist() == sorted(pairs.interactions.tolist())
    assert pairs.ties.tolist() == ties
    assert pairs.equal_texts.tolist() == equal_texts


def test_a_gap_at_the_smallest_makes_no_pair_however_it_was_rounded():
    # 0.40 - 0.35 is above 0.05 and 0.35 - 0.30 below it, by rounding alone
    offsets, scores, hashes = _arrays([[(0.40, 1), (0.35, 2)], [(0.35, 1), (0.30, 2)]])

    pairs = make_pairs(offsets, scores, hashes, np.arange(2), min_gap=0.05)

    assert len(pairs.interactions) == 0
    assert pairs.ties.tolist() == [1, 1]
    wider = make_pairs(offsets, scores, hashes, np.arange(2), min_gap=0.049)
    assert wider.chosen_responses.tolist() == [0, 0]


@pytest.mark.parametrize(
    "close", [(16777217, 16777216), (0.500000001, 0.499999999), (1 + 2e-9, 1 + 1e-9)]
)
@pytest.mark.parametrize("min_gap", [0.0, 1e-12])
def test_scores_that_are_one_number_as_they_are_kept_are_a_tie(close, min_gap):
    offsets, scores, hashes = _arrays([[(close[0], 1), (close[1], 2), (close[0] + 9, 3)]])

    pairs = make_pairs(offsets, scores, hashes, np.arange(1), min_gap=min_gap)

    assert pairs.ties.tolist() == [1]
    assert pairs.chosen_responses.tolist() == [2, 2]


def test_more_pairs_than_any_memory_holds_are_refused_before_one_is_made():
    # 20,000 interactions of 256 responses: 256 x 255 / 2 = 32,640 pairs each
    offsets = np.arange(20_001, dtype=np.int64) * 256
    scores, hashes = np.zeros(offsets[-1]), np.zeros(offsets[-1], dtype=np.uint64)

    with pytest.raises(ValueError, match="652800000 response pairs: must be at most 500000000"):
        make_pairs(offsets, scores, hashes, np.arange(20_000), min_gap=0)
