"""An engine's state in pieces: whoever wrote them, whoever reads them has the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.training.engine_state import MOMENTS, WEIGHT, Piece, State, divided, write_state


def write(folder, rank: int, *pieces: Piece, steps_done: int = 7) -> None:
    (folder / f"worker-{rank}").mkdir(exist_ok=True)
    write_state(folder / f"worker-{rank}", pieces, steps_done=steps_done)


@settings(max_examples=40)
@given(data=st.data(), numel=st.integers(1, 30), workers=st.integers(1, 4))
def test_any_range_of_a_weight_is_read_from_the_pieces_of_any_division(
    tmp_path_factory, data, numel, workers
):
    folder = tmp_path_factory.mktemp("checkpoint")
    values = torch.rand(numel)
    cuts = sorted(data.draw(st.lists(st.integers(0, numel), min_size=3, max_size=3)))
    bounds = [0, *cuts, numel]
    by_worker: list[list[Piece]] = [[] for _ in range(workers)]
    for start, stop in zip(bounds, bounds[1:], strict=False):
        if start < stop:
            piece = Piece("layer.weight", start, {WEIGHT: values[start:stop]})
            by_worker[data.draw(st.integers(0, workers - 1))].append(piece)
    for rank, pieces in enumerate(by_worker):
        write(folder, rank, *pieces)
    start = data.draw(st.integers(0, numel - 1))
    stop = data.draw(st.integers(start + 1, numel + 5))

    found = State(folder).read("layer.weight", WEIGHT, start, stop)

    # A division into equal parts runs past the end; there is nothing there.
    beyond = torch.zeros(max(0, stop - numel))
    assert torch.equal(found, torch.cat([values[start:stop], beyond]))


def test_the_steps_done_and_the_moments_are_known(tmp_path):
    moments = {kind: torch.full((2,), 0.5) for kind in MOMENTS}
    write(
        tmp_path,
        0,
        Piece("trained", 0, {WEIGHT: torch.ones(2), **moments}),
        Piece("new", 0, {WEIGHT: torch.ones(2)}),
        steps_done=12,
    )

    state = State(tmp_path)

    assert state.steps_done == 12
    assert state.has_moments("trained")
    assert not state.has_moments("new")
    assert torch.equal(state.read("trained", "exp_avg_sq", 0, 2), torch.full((2,), 0.5))


def test_a_folder_without_state_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no state.safetensors in it"):
        State(tmp_path)


@given(numel=st.integers(0, 1_000), workers=st.integers(1, 9))
def test_shares_follow_each_other_and_are_near_equal(numel, workers):
    shares = [divided(numel, rank, workers) for rank in range(workers)]

    assert shares[0][0] == 0
    assert shares[-1][1] == numel
    assert all(a[1] == b[0] for a, b in zip(shares, shares[1:], strict=False))
    sizes = [stop - start for start, stop in shares]
    assert max(sizes) - min(sizes) <= 1
