"""Adapters of several trials trained on one frozen base at once, or one after the other?

    python benchmarks/adapters_together.py models/all-minilm-l6-v2 [PAIRS]

Each trial has adapters and a head of its own on the encoder, pairs of its own, PAIRS a step (8),
and an optimizer of its own; nothing is by chance in a pass. One after the other, each trial's texts
go through the network in a row of their own. At once, all trials' texts stand in one row: the
base's matrix products are shared, each trial's adapters see its own tokens
(scpo_ray/models/adapted.py). CPU time of whole steps; the losses have to be the same.
"""

import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scpo_ray.models import adapted
from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.rendering import load_renderer
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import Tokens
from scpo_ray.settings.model import LoraConfig, ModelConfig

TRIALS, STEPS, MEAN_TOKENS = (1, 2, 4, 8), 2, 100


def drawn_texts(number: int, vocabulary: int) -> Tokens:
    rng = np.random.default_rng(0)
    lengths = rng.integers(MEAN_TOKENS // 2, MEAN_TOKENS * 3 // 2, number)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = rng.integers(1_000, vocabulary, offsets[-1]).astype(np.int32)
    return Tokens(ids, None, offsets, np.zeros(number, dtype=bool))


def add_in_one_piece(
    layer: Any, states: Tensor, output: Tensor, spans: Sequence[tuple[str, slice]]
) -> None:
    """What the package adds span by span, for gradients: these would be copied for every span."""
    added = []
    for name, span in spans:
        down, up = layer.lora_A[name], layer.lora_B[name]
        added.append(up(down(states[:, span])) * layer.scaling[name])
    output.add_(torch.cat(added, dim=1))


class Bench:
    """One encoder under the adapters of all trials, as they are before a step was made."""

    def __init__(self, folder: Path, pairs: int) -> None:
        settings = LoraConfig()
        config = ModelConfig(path=str(folder), new_head=True, lora=settings, max_length=256)
        renderer = load_renderer(folder, config)
        model = load_reward_model(folder, config, renderer, device="cpu", seed=0)
        if not model.in_rows:
            raise SystemExit(f"{folder}: its texts are not computed in rows")
        # Which trial a token is of, layers are told by where it stands among all.
        self.model = replace(model, only_read=False)
        self.network: Any = model.network
        self.names = [f"trial{number}" for number in range(max(TRIALS))]
        for name in self.names:
            self.network.add_adapter(name, self.network.peft_config["default"])
        self.weights = {
            name: [p for n, p in self.network.named_parameters() if f".{name}." in n]
            for name in self.names
        }
        self.first = {n: [w.detach().clone() for w in ws] for n, ws in self.weights.items()}
        self.pairs = pairs
        self.tokens = drawn_texts(2 * pairs * len(self.names), self.network.config.vocab_size)

    @torch.no_grad()
    def begin(self) -> dict[str, torch.optim.Optimizer]:
        """Every trial's weights are as at first."""
        self.network.set_adapter(self.names[0])
        for name, weights in self.weights.items():
            for weight, first in zip(weights, self.first[name], strict=True):
                weight.copy_(first)
        return {n: torch.optim.AdamW(ws, lr=1e-3, fused=True) for n, ws in self.weights.items()}

    def texts(self, trial: int) -> np.ndarray[Any, Any]:
        return np.arange(2 * self.pairs) + 2 * self.pairs * trial

    def update(self, rewards: Tensor, optimizers: list[torch.optim.Optimizer]) -> list[float]:
        """One step from the (trials x 2 pairs,) rewards; each trial's loss."""
        losses = []
        for own in rewards.view(len(optimizers), 2, self.pairs):
            losses.append(nn.functional.softplus(own[1] - own[0]).mean())
        torch.stack(losses).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return [float(loss.detach()) for loss in losses]

    def alone(self, trial: int, optimizer: torch.optim.Optimizer) -> list[float]:
        self.network.set_adapter(self.names[trial])
        model: RewardModel = self.model
        return self.update(model.rewards(model.batch(self.tokens, self.texts(trial))), [optimizer])

    def at_once(self, trials: int, optimizers: list[torch.optim.Optimizer]) -> list[float]:
        texts = np.concatenate([self.texts(trial) for trial in range(trials)])
        names = [name for name in self.names[:trials] for _ in range(2 * self.pairs)]
        for name in self.names[:trials]:
            for weight in self.weights[name]:
                weight.requires_grad_(True)
        with adapted.adapters_by_row(self.network, names, self.tokens.lengths[texts].tolist()):
            rewards = self.model.rewards(self.model.batch(self.tokens, texts))
        return self.update(rewards, optimizers)

    def measure(self, trials: int) -> tuple[float, float, float]:
        """CPU seconds of a trial one after the other and at once, and the losses' difference."""
        seconds, losses = [], []
        for together in (False, True):
            own = list(self.begin().values())[:trials]
            found = []
            for step in range(STEPS + 1):
                if step == 1:  # the first one warms up
                    started = time.process_time()
                if together:
                    found.append(self.at_once(trials, own))
                else:
                    found.append([loss for t in range(trials) for loss in self.alone(t, own[t])])
            seconds.append((time.process_time() - started) / STEPS / trials)
            losses.append(np.array(found))
        return seconds[0], seconds[1], float(np.abs(losses[0] - losses[1]).max())


def main() -> None:
    torch.set_num_threads(1)
    adapted._add_adapters = add_in_one_piece
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    bench = Bench(Path(sys.argv[1]), pairs)
    print(f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, {pairs} pairs a step\n")
    print("| trials | one after the other, CPU s | at once, CPU s | times | losses differ by |")
    print("|---|---|---|---|---|")
    for trials in TRIALS:
        alone, at_once, difference = bench.measure(trials)
        if difference > 1e-5:
            raise SystemExit(f"{trials} trials: the losses differ by {difference:.1e}")
        cells = f"{alone:.3f} | {at_once:.3f} | {alone / at_once:.2f} | {difference:.0e}"
        print(f"| {trials} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
