"""Training on one GPU beside TRL, in one run of at most eight minutes: `python benchmarks/gpu.py`.

Three drawn models (DeBERTa-base's shape, Llama's of 1 and of 8 billion weights), their base frozen
in bfloat16 under LoRA, texts as long as PRISM's. Everyone gets the same pairs in steps of 32; after
two steps of warming up, tokens of the pairs' texts per second, the share of what one large bfloat16
product reaches that is spent on them (a frozen weight's own gradient is not computed, padding and
what is computed again do not count), and the most memory that was held. TRL's trainer has its
defaults but for the batch; the 8B model computes activations again with us too, as TRL always does.

`--tiny` runs the same with models of some thousand weights on the CPU: that the script works, and
nothing of a GPU. TRL is had as training_speed.py says; without it its rows are left out.
"""

import argparse
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from training_speed import (
    LEARNING_RATE,
    LONGEST,
    drawn_data,
    tokens_of,
    train_with_trl,
    training_steps,
)

from scpo_ray.models.adapters import add_adapters
from scpo_ray.models.heads import head_of
from scpo_ray.models.packing import fit_for_rows
from scpo_ray.models.precision import keep_exact
from scpo_ray.models.rendering import load_renderer, quiet_transformers
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.models.tiny import make_tiny_backbone
from scpo_ray.settings.model import LoraConfig, ModelConfig
from scpo_ray.settings.train import TrainConfig

BATCH, WARM_UP, MOST_SECONDS = 32, 2, 8 * 60
DEBERTA = {"relative_attention": True, "position_buckets": 256, "pos_att_type": ["p2c", "c2p"]}
DEBERTA |= {"position_biased_input": False, "type_vocab_size": 0, "share_att_key": True}
LLAMA = {"num_key_value_heads": 8, "num_attention_heads": 32, "vocab_size": 128_256}
LLAMA |= {"pad_token_id": 0, "rope_theta": 500_000.0}
# Kind, its settings, and whether activations are computed again.
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "DeBERTa-base": ("deberta-v2", DEBERTA | {"vocab_size": 128_100}, False),
    "Llama 1B": (
        "llama",
        LLAMA | {"hidden_size": 2_048, "intermediate_size": 8_192, "num_hidden_layers": 16},
        False,
    ),
    "Llama 8B": (
        "llama",
        LLAMA | {"hidden_size": 4_096, "intermediate_size": 14_336, "num_hidden_layers": 32},
        True,
    ),
}
SMALL = {"vocab_size": 2_000, "hidden_size": 64, "intermediate_size": 128}
SMALL |= {"num_hidden_layers": 2, "num_attention_heads": 4}


class Bench:
    """One model's shape, and the pairs that everyone trains on."""

    def __init__(self, name: str, device: str, folder: Path, *, num_steps: int, tiny: bool) -> None:
        self.kind, shape, self.recomputes = MODELS[name]
        small = SMALL | ({"num_key_value_heads": 2} if self.kind == "llama" else {})
        self.shape = shape | (small if tiny else {})
        self.device, self.folder = device, folder
        self.batch = 4 if tiny else BATCH
        self.data = drawn_data((WARM_UP + num_steps) * self.batch, whole=False)
        if tiny:
            self.data = replace(self.data, lengths=(self.data.lengths // 8).clip(4))

    def network(self, device: str) -> Any:
        from transformers import AutoConfig, AutoModelForSequenceClassification

        config = AutoConfig.for_model(self.kind, num_labels=1, use_cache=False, **self.shape)
        for rate in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout"):
            if hasattr(config, rate):
                setattr(config, rate, 0.0)
        torch.manual_seed(0)
        with torch.device(device):
            return AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16)

    def ours(self) -> tuple[float, float]:
        """Seconds of the steps after those that warm up, and tokens of their pairs' texts."""
        config = ModelConfig(path=str(self.folder), max_length=LONGEST, renderer="pair")
        renderer = load_renderer(self.folder, config)
        network = self.network(self.device)
        keep_exact(network, head_of(network), self.folder, {})
        adapted = add_adapters(network, LoraConfig(), []).eval()
        model = RewardModel(adapted, renderer, self.device, config.batch_tokens(self.device))
        model = replace(model, in_rows=fit_for_rows(model.scored))
        train = TrainConfig(
            batch_size=self.batch,
            max_steps=len(self.data.pairs) // self.batch,
            learning_rate=LEARNING_RATE,
            gradient_checkpointing=self.recomputes,
        )
        tokens = tokens_of(self.data.lengths, self.shape["vocab_size"])
        rows: list[NDArray[np.int64]] = []
        started = 0.0
        for number, step in enumerate(training_steps(model, train, self.data, tokens)):
            if number == WARM_UP:
                started = self.now()
            rows.append(step())
        return self.now() - started, self.tokens_of_pairs(np.concatenate(rows[WARM_UP:]))

    def trl(self) -> tuple[float, float]:
        """The same, of pairs in the order of the data."""
        import peft

        clock: dict[int, float] = {}
        lora = LoraConfig()
        adapters = peft.LoraConfig(
            task_type=peft.TaskType.SEQ_CLS,
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=lora.target_modules,
        )
        train_with_trl(
            peft.get_peft_model(self.network(self.device), adapters),
            self.folder,
            self.data,
            lambda steps: clock.update({steps: self.now()}),
            per_device_train_batch_size=self.batch,
            use_cpu=self.device == "cpu",
            bf16=self.device != "cpu",
            train_sampling_strategy="sequential",
        )
        measured = np.arange(WARM_UP * self.batch, len(self.data.pairs))
        return clock[max(clock)] - clock[WARM_UP], self.tokens_of_pairs(measured)

    def now(self) -> float:
        """Seconds, when all that was begun on the GPU has ended."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def tokens_of_pairs(self, rows: NDArray[np.int64]) -> float:
        return float(self.data.lengths[self.data.pairs[rows]].sum())

    def flops_per_token(self) -> float:
        """Of the backbone's products, and of attention over texts of these lengths.

        A frozen weight is multiplied with once forward and once backward, attention twice backward.
        """
        body = self.network("meta").base_model
        weights = sum(m.weight.numel() for m in body.modules() if isinstance(m, nn.Linear))
        lengths = self.data.lengths[self.data.pairs].ravel().astype(np.float64)
        # A decoder's texts look back alone: half of the square.
        share = 0.5 if self.kind == "llama" else 1.0
        width, layers = body.config.hidden_size, body.config.num_hidden_layers
        squares = 3 * 4 * width * layers * share * float((lengths**2).sum() / lengths.sum())
        return 2 * 2 * weights + squares


def peak_flops(device: str, *, size: int) -> float:
    """Of one large product in bfloat16, per second: the best of five."""
    one, other = torch.randn(2, size, size, device=device).bfloat16()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(10):
            one @ other
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 10 * 2 * size**3 / min(seconds)


def measured(run: Callable[[], tuple[float, float]], device: str) -> tuple[float, str]:
    """Tokens per second, and the most memory held meanwhile."""
    if device == "cpu":
        seconds, tokens = run()
        return tokens / seconds, "-"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds, tokens = run()
    return tokens / seconds, f"{torch.cuda.max_memory_allocated() / 10**9:.1f}"


def table(device: str, folder: Path, *, num_steps: int, tiny: bool) -> None:
    begun = time.monotonic()
    peak = peak_flops(device, size=256 if tiny else 8_192)
    print(f"One bfloat16 product: {peak / 1e12:.3g} TFLOP/s.\n")
    print("| model | who | tokens/s | useful share | peak GB | times TRL |\n" + "|---" * 6 + "|")
    try:
        import trl  # noqa: F401
    except ImportError as error:
        missing = str(error)
    else:
        missing = ""
    for name in MODELS:
        bench = Bench(name, device, folder, num_steps=num_steps, tiny=tiny)
        useful = bench.flops_per_token()
        theirs = None
        for who, run in {"TRL": bench.trl, "ours": bench.ours}.items():
            if who == "TRL" and missing:
                continue
            if time.monotonic() - begun > MOST_SECONDS * 0.75:
                print(f"| {name} | {who} | left out: no time | | | |")
                continue
            try:
                speed, held = measured(run, device)
            except torch.OutOfMemoryError:
                print(f"| {name} | {who} | out of memory | | | |", flush=True)
                continue
            theirs = speed if who == "TRL" else theirs
            ratio = "-" if theirs is None else f"{speed / theirs:.2f}"
            share = f"{speed * useful / peak:.0%}"
            print(f"| {name} | {who} | {speed:,.0f} | {share} | {held} | {ratio} |", flush=True)
    if missing:
        print(f"\nTRL is left out, not installed: {missing}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        parser.error("this machine has no GPU; --tiny tries the script on the CPU")
    warnings.simplefilter("ignore")
    quiet_transformers()
    device = "cpu" if given.tiny else "cuda"
    name = platform.machine() if given.tiny else torch.cuda.get_device_name()
    print(f"{name}, Python {platform.python_version()}, torch {torch.__version__}")
    if given.tiny:
        print(
            "Tiny models on a CPU: this shows that the script works and measured nothing of a GPU."
        )
    with tempfile.TemporaryDirectory() as folder:
        make_tiny_backbone(Path(folder), ["a", "b"], seed=0)
        num_steps = 2 if given.tiny else given.steps
        table(device, Path(folder), num_steps=num_steps, tiny=given.tiny)


if __name__ == "__main__":
    main()
