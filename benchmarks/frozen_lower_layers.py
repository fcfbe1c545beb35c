"""Do trials of the top layer alone, from stored hidden states, rank settings as full training does?

    scpo train sweeps/blend_global.yaml
    scpo export runs/blend-global/finetune-all-s0-* models/blend-global
    python benchmarks/frozen_lower_layers.py models/blend-global

SCPO on one culture of BLEnD at several thresholds, temperatures and learning rates, each trained
twice from the same global model on the same batches: all weights, and the last layer and the head
alone. What goes into the last layer is computed once for every text. Both are plain padded loops
without dropout, so that the lower layers are the one difference. Accuracy is of the test pairs,
time is CPU time of the training steps.
"""

import argparse
import copy
import platform
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from scpo_ray.experiment import load_inputs, task_of
from scpo_ray.inputs import open_run_dir
from scpo_ray.methods.selection import agreement_weights, disagreement_mask
from scpo_ray.methods.task import Task
from scpo_ray.models.reward_model import turn_off_dropout
from scpo_ray.records import ALONE
from scpo_ray.settings.files import load_sweep

TAUS, BETAS, RATES = [0.51, 0.55, None], [0.1, 1.0], [5e-5, 2e-4]
BATCH, TEXTS = 16, 64


class Stored(nn.Module):
    """In the place of the embeddings: what was stored of the texts that `ids` names."""

    def __init__(self, hidden: list[Tensor]) -> None:
        super().__init__()
        self.hidden = hidden
        self.ids: NDArray[np.int64] = np.array([], dtype=np.int64)

    def forward(self, *given: Any, **more: Any) -> Tensor:
        return nn.utils.rnn.pad_sequence([self.hidden[i] for i in self.ids], batch_first=True)


class Bench:
    """One culture's pairs, and its global model's network with and without its lower layers."""

    def __init__(self, task: Task, steps: int) -> None:
        self.task, self.steps = task, steps
        self.model = replace(task.base.trainable(0), in_rows=False)
        turn_off_dropout(self.model.network)
        self.chosen, self.rejected = task.ref_pair_rewards
        self.hidden: list[Tensor] = [torch.empty(0)] * len(task.tokens.lengths)

    def inputs(self, texts: NDArray[np.int64]) -> dict[str, Tensor]:
        return self.model.batch(self.task.tokens, texts)

    @torch.no_grad()
    def store(self) -> float:
        """Keeps what goes into the last layer, of every text; CPU seconds."""
        started = time.process_time()
        network: Any = self.model.network
        read: list[Tensor] = []
        top = network.base_model.encoder.layer[-1]
        hook = top.register_forward_pre_hook(lambda module, args: read.append(args[0]))
        lengths = self.task.tokens.lengths
        pairs = (self.task.train_pairs, self.task.data.test)
        used = np.unique(np.concatenate([np.r_[each.chosen, each.rejected] for each in pairs]))
        used = used[np.argsort(lengths[used])]
        for start in range(0, len(used), TEXTS):
            texts = used[start : start + TEXTS]
            network(**self.inputs(texts))
            for text, states in zip(texts, read.pop(), strict=True):
                self.hidden[text] = states[: lengths[text]].clone()
        hook.remove()
        return time.process_time() - started

    def network(self, *, whole: bool) -> Any:
        network: Any = copy.deepcopy(self.model.network)
        if not whole:
            network.base_model.embeddings = Stored(self.hidden)
            network.base_model.encoder.layer = network.base_model.encoder.layer[-1:]
        return network

    def rewards(self, network: Any, texts: NDArray[np.int64]) -> Tensor:
        first = network.base_model.embeddings
        if isinstance(first, Stored):
            first.ids = texts
        return network(**self.inputs(texts)).logits.squeeze(-1)

    def trial(
        self, tau: float | None, beta: float, rate: float, *, whole: bool
    ) -> tuple[float, float]:
        """Accuracy on the test pairs, and CPU seconds of the training."""
        network, pairs = self.network(whole=whole), self.task.train_pairs
        keep = torch.ones(len(pairs), dtype=torch.bool)
        if tau is not None:
            keep = disagreement_mask(self.chosen, self.rejected, threshold=tau)
        weights = agreement_weights(self.chosen, self.rejected, temperature=beta)
        rows = np.flatnonzero(keep.numpy())
        rng = np.random.default_rng(0)
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate, fused=True)
        started = time.process_time()
        for _ in range(self.steps):
            batch = rng.choice(rows, BATCH, replace=False)
            rewards = self.rewards(network, np.r_[pairs.chosen[batch], pairs.rejected[batch]])
            margins = rewards[:BATCH] - rewards[BATCH:]
            (nn.functional.softplus(-margins) * weights[batch]).mean().backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.process_time() - started
        return self.accuracy(network), seconds

    @torch.no_grad()
    def accuracy(self, network: Any) -> float:
        test, lengths = self.task.data.test, self.task.tokens.lengths
        texts = np.unique(np.r_[test.chosen, test.rejected])
        texts = texts[np.argsort(lengths[texts])]
        found = np.zeros(len(lengths))
        for start in range(0, len(texts), TEXTS):
            some = texts[start : start + TEXTS]
            found[some] = self.rewards(network, some).numpy()
        return 100 * float((found[test.chosen] > found[test.rejected]).mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--culture", default="Mexico")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    run = load_sweep("sweeps/blend.yaml").run
    config = run.model_copy(
        update={
            "culture_weights": {given.culture: 1.0},
            "data": run.data.model_copy(update={"cultures": [given.culture]}),
            "model": run.model.model_copy(update={"path": str(given.model)}),
            "output_dir": given.output_dir,
        }
    )
    task = task_of(config, load_inputs(config, open_run_dir(config)), ALONE)
    bench = Bench(task, given.steps)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, one thread")
    print(f"{len(task.train_pairs)} pairs, {len(task.data.test)} of test, {given.steps} steps")
    storing = bench.store()
    size = sum(states.nbytes for states in bench.hidden) / 2**20
    print(f"hidden states: {storing:.1f} s, {size:.0f} MB\n")
    print("| tau | beta | rate | all, % | top, % | all, s | top, s |\n" + "|---" * 7 + "|")
    rows = []
    for tau, beta, rate in product(TAUS, BETAS, RATES):
        (whole, all_s), (top, top_s) = (
            bench.trial(tau, beta, rate, whole=whole) for whole in (True, False)
        )
        rows.append((whole, top, all_s, top_s))
        print(
            f"| {'none' if tau is None else tau} | {beta} | {rate} | {whole:.1f} | {top:.1f} | "
            f"{all_s:.1f} | {top_s:.1f} |",
            flush=True,
        )
    by_all, by_top, all_seconds, top_seconds = zip(*rows, strict=True)
    told = float(spearmanr(by_all, by_top).statistic)
    ratio = sum(all_seconds) / (sum(top_seconds) + storing)
    print(f"\n{len(rows)} settings: rank correlation {told:+.2f}, {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
