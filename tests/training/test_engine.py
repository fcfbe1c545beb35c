"""The optimizer around the network: rates, clipping, precision, state on disk."""

import math

import numpy as np
import pytest
import torch

from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.rendering import load_renderer
from scpo_ray.records import ALONE, Text
from scpo_ray.settings.model import LoraConfig, ModelConfig
from scpo_ray.settings.train import TrainConfig
from scpo_ray.training.engine import TorchEngine
from scpo_ray.training.optimization import learning_rate

TEXTS = [Text((), "about art", "answer"), Text((), "a", "art about a"), Text((), "art", "a " * 20)]


def engine_on(folder, *, lora=None, **settings) -> TorchEngine:
    config = ModelConfig(path=str(folder), max_length=48, lora=lora)
    renderer = load_renderer(folder, config)
    model = load_reward_model(folder, config, renderer, device="cpu", seed=0)
    settings = {"learning_rate": 1e-2, "max_steps": 8} | settings
    return TorchEngine(model, TrainConfig(**settings), ALONE)


def inputs_of(engine: TorchEngine) -> dict[str, torch.Tensor]:
    model = engine.model
    return model.batch(model.renderer.encode(TEXTS), np.arange(len(TEXTS)))


def backward(engine: TorchEngine) -> None:
    loss = (engine.rewards(inputs_of(engine)) * torch.tensor([1.0, -2.0, 3.0])).sum()
    engine.backward(loss, last=True)


def weights_of(engine: TorchEngine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine.parameters.items()}


def gradients_of(engine: TorchEngine) -> dict[str, torch.Tensor]:
    backward(engine)
    return {n: p.grad.clone() for n, p in engine.parameters.items() if p.grad is not None}


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "expected"),
    [
        ("linear", 0, [1.0, 0.75, 0.5, 0.25]),
        ("cosine", 0, [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("linear", 1, [0.5, 1.0, 2 / 3, 1 / 3]),
        ("linear", 3, [0.25, 0.5, 0.75, 1.0]),
        ("cosine", 2, [1 / 3, 2 / 3, 1.0, 0.5]),
    ],
)
def test_the_rate_rises_over_the_warm_up_and_falls_to_zero(schedule, warmup_steps, expected):
    config = TrainConfig(
        max_steps=4, learning_rate=2.0, schedule=schedule, warmup_steps=warmup_steps
    )

    rates = [learning_rate(step, config) for step in (1, 2, 3, 4)]

    assert rates == pytest.approx([2.0 * share for share in expected])
    assert learning_rate(5, config) == pytest.approx(0.0, abs=1e-12)


def test_a_step_runs_at_its_rate_and_says_so(tiny_reward_model):
    engine = engine_on(tiny_reward_model, weight_decay=0.0)
    before = weights_of(engine)
    backward(engine)

    stats = engine.step()

    # Adam's first step moves every weight with a gradient by the learning rate.
    moved = max(float((w - before[n]).abs().max()) for n, w in weights_of(engine).items())
    assert stats.lr == 1e-2
    assert moved == pytest.approx(1e-2, rel=1e-3)
    backward(engine)
    assert engine.step().lr == pytest.approx(1e-2 * 7 / 8)
    assert engine.steps_done == 2


def test_gradients_are_clipped_to_the_norm_and_reported_before(tiny_reward_model):
    engine = engine_on(tiny_reward_model, max_grad_norm=0.5, dropout=False)
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients_of(engine).values()))

    stats = engine.step()

    # After one step Adam's first moment is 0.1 of the gradient it was given.
    moments = [state["exp_avg"] for state in engine.optimizer.state.values()]
    clipped = math.sqrt(sum(float((m**2).sum()) for m in moments)) / 0.1
    assert norm > 0.5
    assert stats.grad_norm == pytest.approx(norm, rel=1e-4)
    assert clipped == pytest.approx(0.5, rel=1e-3)


def test_a_small_gradient_is_not_clipped(tiny_reward_model):
    engine = engine_on(tiny_reward_model, max_grad_norm=1e6, dropout=False)
    gradients = gradients_of(engine)

    engine.step()

    for name, parameter in engine.parameters.items():
        if name in gradients:
            moment = engine.optimizer.state[parameter]["exp_avg"]
            torch.testing.assert_close(moment, 0.1 * gradients[name])


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_gradient_checkpointing_gives_the_same_gradients(tiny_reward_model, lora):
    plain = gradients_of(engine_on(tiny_reward_model, lora=lora, dropout=False))

    recomputed = gradients_of(
        engine_on(tiny_reward_model, lora=lora, dropout=False, gradient_checkpointing=True)
    )

    assert recomputed.keys() == plain.keys()
    assert any(gradient.abs().max() > 0 for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient)


def test_dropout_is_on_unless_turned_off(tiny_reward_model):
    dropping, still = engine_on(tiny_reward_model), engine_on(tiny_reward_model, dropout=False)

    assert not torch.equal(
        dropping.rewards(inputs_of(dropping)), dropping.rewards(inputs_of(dropping))
    )
    assert torch.equal(still.rewards(inputs_of(still)), still.rewards(inputs_of(still)))


def test_bf16_computes_near_fp32_and_keeps_float32_weights(tiny_reward_model):
    exact = engine_on(tiny_reward_model, dropout=False)
    coarse = engine_on(tiny_reward_model, dropout=False, precision="bf16")

    rewards = coarse.rewards(inputs_of(coarse))

    torch.testing.assert_close(rewards.float(), exact.rewards(inputs_of(exact)), rtol=0, atol=0.02)
    assert not torch.equal(rewards.float(), exact.rewards(inputs_of(exact)))
    backward(coarse)
    assert math.isfinite(coarse.step().grad_norm)
    assert {p.dtype for p in coarse.parameters.values()} == {torch.float32}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(tiny_reward_model, value):
    engine = engine_on(tiny_reward_model)
    backward(engine)
    engine.step()
    before = weights_of(engine)
    moments = {id(p): s["exp_avg"].clone() for p, s in engine.optimizer.state.items()}
    backward(engine)
    next(p for p in engine.parameters.values() if p.grad is not None).grad.view(-1)[0] = value

    with pytest.raises(FloatingPointError, match="the gradient's norm is (nan|inf)"):
        engine.step()

    assert engine.steps_done == 1
    assert all(w.equal(before[n]) for n, w in weights_of(engine).items())
    for parameter, state in engine.optimizer.state.items():
        assert state["exp_avg"].equal(moments[id(parameter)])


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_checkpoint_goes_on_to_the_bit(tiny_reward_model, tmp_path, lora, steps):
    engine = engine_on(tiny_reward_model, lora=lora)
    for step in range(steps):
        torch.manual_seed(step)
        backward(engine)
        engine.step()
    (tmp_path / "worker-0").mkdir()
    engine.save_checkpoint(tmp_path / "worker-0")
    other = engine_on(tiny_reward_model, lora=lora)
    if steps:
        backward(other)
        other.step()

    other.load_checkpoint(tmp_path)

    assert other.steps_done == steps
    for running in (engine, other):
        for step in range(steps, steps + 2):
            torch.manual_seed(step)
            backward(running)
            running.step()
    assert all(w.equal(weights_of(engine)[n]) for n, w in weights_of(other).items())
