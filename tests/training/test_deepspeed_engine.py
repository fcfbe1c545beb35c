"""What DeepSpeed's engine does by itself: weights divided by ZeRO 3 that are gathered in bf16."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.rendering import load_renderer
from scpo_ray.records import Worker
from scpo_ray.settings.model import ModelConfig
from scpo_ray.settings.train import TrainConfig
from scpo_ray.training.deepspeed_engine import DeepSpeedEngine, divided_reading
from tests.training.test_engine import TEXTS


def two_steps(worker: Worker, folder: Path, train: TrainConfig) -> dict[str, Any]:
    """What two steps of two passes gather, and what comes out."""
    import deepspeed.comm

    plain, gathered = deepspeed.comm.allgather_fn, {torch.float32: 0, torch.bfloat16: 0}

    def counting(output: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        gathered[output.dtype] += output.nbytes
        return plain(output, *arguments, **more)

    config = ModelConfig(path=str(folder), max_length=48)
    renderer = load_renderer(folder, config)
    divided = divided_reading(train, worker)
    model = load_reward_model(
        folder, config, renderer, device="cpu", seed=worker.rank, divided=divided
    )
    engine = DeepSpeedEngine(model, train, worker)
    batch = model.batch(renderer.encode(TEXTS), np.arange(len(TEXTS)))
    deepspeed.comm.allgather_fn = counting
    try:
        for _ in range(2):
            for last in (False, True):
                rewards = engine.rewards(batch)
                engine.backward((rewards * torch.tensor([1.0, -2.0, 3.0])).sum(), last=last)
            norm = engine.step().grad_norm
    finally:
        deepspeed.comm.allgather_fn = plain
    # A pass without gradient leaves weights gathered.
    with torch.no_grad():
        rewards = engine.rewards(batch)
    weights = dict(engine.divided_weights() or ())
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    return {"gathered": gathered, "norm": norm, "rewards": rewards, "weights": weights}


def test_what_is_gathered_in_bf16_gives_the_numbers_of_what_is_gathered_whole(
    groups, tiny_reward_model, tmp_path
):
    def on_two_workers(name: str, **torch_autocast: Any) -> dict[str, Any]:
        more = tmp_path / f"{name}.json"
        # A tiny network's weights would all be kept gathered.
        more.write_text(
            json.dumps(
                {
                    "zero_optimization": {"stage3_param_persistence_threshold": 0},
                    "torch_autocast": torch_autocast,
                }
            )
        )
        train = TrainConfig(
            engine="deepspeed",
            zero_stage=3,
            precision="bf16",
            dropout=False,
            learning_rate=1e-3,
            deepspeed_config=more,
        )
        return groups.run(2, two_steps, tiny_reward_model, train)[0]

    rounded = on_two_workers("ours")
    # A list of the user's own, of layers that the network has none of.
    whole = on_two_workers("theirs", lower_precision_safe_modules=["torch.nn.Conv3d"])

    assert whole["gathered"][torch.bfloat16] == 0
    linear, rest = rounded["gathered"][torch.bfloat16], rounded["gathered"][torch.float32]
    assert 0 < rest < whole["gathered"][torch.float32]
    assert 2 * linear + rest == whole["gathered"][torch.float32]
    assert rounded["norm"] == whole["norm"]
    assert rounded["rewards"].equal(whole["rewards"])
    for name, weight in whole["weights"].items():
        assert rounded["weights"][name].equal(weight), name
    query = next(weight for name, weight in rounded["weights"].items() if "query.weight" in name)
    assert not query.equal(query.bfloat16().float())
