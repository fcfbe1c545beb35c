"""The memory of a worker: arithmetic in sight, and a refusal with the numbers."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.models.shapes import NetworkShape, network_shape
from scpo_ray.records import InputError
from scpo_ray.settings.model import LoraConfig, ModelConfig
from scpo_ray.settings.train import TrainConfig
from scpo_ray.training.memory import check_room, estimate_memory

WHOLE = NetworkShape(0, 100, 0, 4, largest=10, kept_bytes=60, between_bytes=12, num_layers=4)
ADAPTED = replace(WHOLE, frozen=1_000, trained=10, frozen_bytes=2_000, weight_bytes=2)


def train(stage: int | None = None, **settings) -> TrainConfig:
    if stage is None:
        return TrainConfig(**settings)
    return TrainConfig(engine="deepspeed", zero_stage=stage, num_workers=2, **settings)


# Weights, gradients, optimizer (moments, and from ZeRO 1 on float32 copies), buffers.
@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        (None, (400, 400, 800, 0)),
        (0, (400, 400, 800, 400)),
        (1, (400, 400 + 200, 600, 400)),
        (2, (400, 400, 600, 800)),
        (3, (200, 200, 600, 400 + 1_200)),
    ],
)
def test_what_is_divided_among_two_workers(stage, parts):
    found = estimate_memory(WHOLE, train(stage), num_workers=2, device="cpu")

    assert (found.weights, found.gradients, found.optimizer, found.buffers) == parts
    assert found.host == 0


def test_a_frozen_base_has_no_gradients_and_stays_in_its_dtype():
    found = estimate_memory(ADAPTED, train(), num_workers=1, device="cpu")

    assert (found.weights, found.gradients, found.optimizer) == (2_000 + 40, 40, 80)
    assert found.total == 2_040 + 40 + 80 + 60


def test_a_pass_of_divided_weights_has_them_whole_and_once_more_while_they_arrive():
    whole = estimate_memory(WHOLE, train(3), num_workers=2, device="cpu")
    adapted = estimate_memory(ADAPTED, train(3), num_workers=2, device="cpu")

    assert whole.activations == 60 + 400 + 400
    assert adapted.activations == 60 + 2 * (2_000 + 40)
    # Beside few trained weights it is the most that there is: their gradients travel in 3 buckets.
    assert adapted.total == (2_000 + 40 + 40 + 40 + 80) // 2 + adapted.activations


def test_recomputed_activations_are_those_between_layers_and_one_layers_own():
    plain = estimate_memory(WHOLE, train(), num_workers=1, device="cpu")
    again = estimate_memory(WHOLE, train(gradient_checkpointing=True), num_workers=1, device="cpu")

    assert (plain.activations, again.activations) == (60, 12 + 60 // 4)


def test_what_is_offloaded_is_the_machines():
    here = estimate_memory(WHOLE, train(1), num_workers=2, device="cuda")
    there = estimate_memory(WHOLE, train(1, offload_optimizer=True), num_workers=2, device="cuda")

    assert (here.optimizer, there.optimizer) == (600, 0)
    assert there.host - here.host == 600


@given(
    workers=st.integers(1, 64),
    stage=st.sampled_from([None, 0, 1, 2, 3]),
    trained=st.integers(1, 10**10),
)
def test_more_workers_never_need_more(workers, stage, trained):
    shape = replace(WHOLE, trained=trained)

    one, more = (
        estimate_memory(shape, train(stage), num_workers=n, device="cuda")
        for n in (workers, workers + 1)
    )

    assert more.total <= one.total


def test_a_model_without_room_is_refused_with_the_numbers():
    shape = replace(WHOLE, trained=8 * 10**9)
    estimate = estimate_memory(shape, train(), num_workers=1, device="cuda")

    check_room(estimate, 128 * 10**9, "cuda")
    with pytest.raises(InputError, match=r"needs 128.0 GB, and cuda has 85.0 GB free") as caught:
        check_room(estimate, 85 * 10**9, "cuda")

    assert "weights 32.0 GB, gradients 32.0 GB, optimizer 64.0 GB" in caught.value.problems[0]


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_a_shape_is_that_of_the_network_that_is_loaded(tiny_reward_model, lora):
    from tests.models.test_reward_model import loaded

    config = ModelConfig(path=str(tiny_reward_model), lora=lora, dtype="float32", max_length=48)
    weights = list(loaded(tiny_reward_model, lora=lora).network.parameters())

    shape = network_shape(tiny_reward_model, config, texts=4, width=16, autocast=False)
    wider = network_shape(tiny_reward_model, config, texts=8, width=16, autocast=False)

    assert shape.trained == sum(p.numel() for p in weights if p.requires_grad)
    assert shape.frozen == sum(p.numel() for p in weights if not p.requires_grad)
    assert (shape.num_layers, shape.weight_bytes) == (2, 4)
    assert shape.kept_bytes == pytest.approx(wider.kept_bytes / 2, rel=0.02)
