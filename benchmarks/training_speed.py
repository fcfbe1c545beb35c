"""Training and scoring beside what people use: `python benchmarks/training_speed.py MODEL`.

MODEL is a folder with a pretrained encoder without a score head, such as `models/all-minilm-l6-v2`
(`make backbone`). Texts are as long as PRISM's under its tokenizer, interactions of two to four
responses; their tokens are drawn. One process, one thread, CPU time, float32 unless said, dropout
off (TRL's default). Everyone gets the same pairs, and a share is of what one large matrix product
reaches. All contenders run one after the other, twice; ratios are within a round.

training: pairs per second of one epoch over the pairs.
scoring: texts per second, tokenizing included, without gradient.
budgets: the same training at other numbers of tokens per pass.
TRL is not among this project's packages. Its rows are left out, and say so, unless it is found:
    pip install --target trl --no-deps trl==1.16.0 accelerate==1.15.0; PYTHONPATH=trl python ...
"""

import argparse
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

# Before torch is loaded, which reads it once.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr

from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.rendering import load_renderer, quiet_transformers
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.models.scoring import score_texts
from scpo_ray.records import ALONE, Text, Tokens
from scpo_ray.settings.model import ModelConfig
from scpo_ray.settings.train import TrainConfig
from scpo_ray.training.engine import TorchEngine
from scpo_ray.training.loop import TrainingData, step_loss
from scpo_ray.training.pair_weights import FixedWeights
from scpo_ray.training.plan import Step, plan_steps

# Every twentieth of PRISM's texts is at most so long: tokens of prompt and response.
QUANTILES = [8, 31, 48, 59, 66, 72, 77, 83, 90, 97]
QUANTILES += [105, 114, 126, 140, 158, 176, 189, 204, 235, 270, 512]
RESPONSES, SHARES, ALIKE = [2, 3, 4], [0.70, 0.06, 0.24], 0.64
BATCH, LONGEST, LEARNING_RATE = 8, 512, 1e-6


def interactions(number: int) -> list[NDArray[np.int64]]:
    """Lengths of each interaction's texts."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(number):
        # Two texts of a prompt differ by 42 % of the mean length, as PRISM's do.
        common, own = rng.standard_normal(), rng.standard_normal(rng.choice(RESPONSES, p=SHARES))
        ranks = ndtr(ALIKE**0.5 * common + (1 - ALIKE) ** 0.5 * own)
        lengths = np.interp(ranks, np.linspace(0, 1, len(QUANTILES)), QUANTILES)
        found.append(lengths.round().astype(np.int64))
    return found


@dataclass(frozen=True)
class Data:
    """P pairs to train on: (P, 2) `pairs`, (P,) the interaction of each, (T,) `lengths`."""

    pairs: NDArray[np.int64]
    groups: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @property
    def tokens_per_pair(self) -> float:
        return float(self.lengths[self.pairs].sum(axis=1).mean())


def drawn_data(num_pairs: int, *, whole: bool) -> Data:
    """Single pairs of many interactions, or all pairs of as many as it takes (the last may be cut),
    of the same length on average."""
    lengths: list[int] = []
    pairs, groups = [], []
    for number, texts in enumerate(interactions(10 * num_pairs)):
        first = len(lengths)
        lengths += texts.tolist()
        every = [(first + a, first + b) for a in range(len(texts)) for b in range(a)]
        pairs += every
        groups += [number] * len(every)
    chosen = np.random.default_rng(1).permutation(len(pairs))[:num_pairs]
    rows = np.arange(num_pairs) if whole else chosen
    data = Data(np.array(pairs)[rows], np.array(groups)[rows], np.array(lengths))
    if not whole:
        return data
    usual = drawn_data(num_pairs, whole=False).tokens_per_pair
    scaled = (data.lengths * usual / data.tokens_per_pair).round().clip(8, LONGEST)
    return replace(data, lengths=scaled.astype(np.int64))


def tokens_of(lengths: NDArray[np.int64], num_ids: int) -> Tokens:
    ids = np.random.default_rng(2).integers(1_000, num_ids, lengths.sum())
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Tokens(ids.astype(np.int32), None, offsets, np.zeros(len(lengths), np.bool_))


def useful_flops(network: Any, lengths: NDArray[np.int64], passes: int) -> float:
    """Of matrix products and attention over real tokens; a backward pass counts as two."""
    config = network.config
    width, inner = config.hidden_size, config.intermediate_size
    per_token = config.num_hidden_layers * 2 * (4 * width**2 + 2 * width * inner)
    per_square = config.num_hidden_layers * 4 * width
    return passes * float((per_token * lengths + per_square * lengths**2).sum())


def gemm_flops(network: Any) -> float:
    """Floating-point operations per second of one large product of the network's widths."""
    width, inner = network.config.hidden_size, network.config.intermediate_size
    one, other = torch.randn(1024, width), torch.randn(width, inner)
    one @ other
    started = time.process_time()
    for _ in range(60):
        one @ other
    return 60 * 2 * 1024 * width * inner / (time.process_time() - started)


def plain_network(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )


def training_steps(
    model: RewardModel, config: TrainConfig, data: Data, tokens: Tokens, *, whole: bool = False
) -> Iterator[Callable[[], NDArray[np.int64]]]:
    """Our training on the data, each of its steps as a call that gives the rows of its pairs."""
    plan = plan_steps(
        data.pairs,
        data.lengths,
        batch_size=config.batch_size,
        num_steps=config.max_steps,
        micro_batch_tokens=config.pass_tokens(model.device, 2 * LONGEST),
        num_workers=1,
        seed=0,
        groups=data.groups if whole else None,
    )
    plan = replace(plan, in_rows=model.in_rows)
    weights = FixedWeights(np.ones(len(data.pairs), np.float32))
    training = TrainingData(tokens, weights, lambda rows: [])
    engine = TorchEngine(model, config, ALONE)

    def step_of(step: Step) -> NDArray[np.int64]:
        step_loss(engine, step, training, ALONE, normalize_weights=False)
        engine.step()
        return step.rows

    for step in plan.steps_from(0):
        yield partial(step_of, step)


def train_with_trl(
    network: Any, tokenizer: Path, data: Data, tell: Callable[[int], None], **settings: Any
) -> None:
    """One epoch over the data's pairs by TRL's trainer.

    Args:
        tell: called when training begins, with 0, and after each step, with their number.
        settings: of its `RewardConfig`, beside those for which all contenders have one value.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *given: Any, **more: Any) -> None:
            tell(0)

        def on_step_end(self, args: Any, state: Any, *given: Any, **more: Any) -> None:
            tell(state.global_step)

    ids = [[7] * length for length in data.lengths]
    rows = [{"chosen_ids": ids[a], "rejected_ids": ids[b]} for a, b in data.pairs]
    with tempfile.TemporaryDirectory() as output:
        config = RewardConfig(
            output_dir=output,
            num_train_epochs=1,
            max_length=LONGEST,
            report_to="none",
            save_strategy="no",
            logging_steps=10**6,
            disable_tqdm=True,
            learning_rate=LEARNING_RATE,
            **settings,
        )
        RewardTrainer(
            model=network,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(tokenizer),
            callbacks=[Clock()],
        ).train()


class Training:
    """One epoch over the same pairs by every contender: CPU seconds, and pairs computed."""

    def __init__(self, folder: Path, num_steps: int) -> None:
        self.folder, self.network = folder, plain_network(folder)
        self.data = drawn_data(num_steps * BATCH, whole=False)
        self.pairs, self.lengths = self.data.pairs, self.data.lengths
        self.num_ids = self.network.config.vocab_size
        self.tokens = tokens_of(self.lengths, self.num_ids)

    def ids(self, text: int) -> list[int]:
        start, stop = self.tokens.offsets[text : text + 2]
        return self.tokens.input_ids[start:stop].tolist()

    def grouped(self) -> Data:
        """As many batches as there are steps, of those that 400 pairs sorted by length make, evenly
        from the longest to the shortest: fewer pairs would group worse than large data does."""
        data = drawn_data(50 * BATCH, whole=False)
        order = np.argsort(-data.lengths[data.pairs].max(axis=1), kind="stable")
        num_steps = len(self.pairs) // BATCH
        places = ((np.arange(num_steps) + 0.5) * 50 / num_steps).astype(np.int64)
        return replace(data, pairs=data.pairs[order.reshape(50, BATCH)[places].ravel()])

    def papers_recipe(self) -> tuple[float, int]:
        """Everything padded to 512, so that each step costs the same and one tells."""
        network = plain_network(self.folder).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
        started = time.process_time()
        texts = self.pairs[:BATCH].T.ravel()
        ids = torch.zeros(len(texts), LONGEST, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : self.lengths[text]] = torch.tensor(self.ids(text))
        rewards = network(input_ids=ids, attention_mask=(ids > 0).long()).logits.squeeze(-1)
        margins = rewards[:BATCH] - rewards[BATCH:]
        torch.nn.functional.softplus(-margins).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return time.process_time() - started, BATCH

    def trl(self, *, by_length: bool = False) -> tuple[float, float]:
        """`by_length`: its batches of near-equal length, which come in the order they are given."""
        data = self.grouped() if by_length else self.data
        clock: dict[str, float] = {}

        def tell(steps: int) -> None:
            clock["end"] = time.process_time()
            clock.setdefault("begin", clock["end"])

        train_with_trl(
            plain_network(self.folder),
            self.folder,
            data,
            tell,
            per_device_train_batch_size=BATCH,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential" if by_length else "random",
        )
        # Pairs of the usual length: these batches' are a little longer or shorter.
        number = len(data.pairs) * data.tokens_per_pair / self.data.tokens_per_pair
        return clock["end"] - clock["begin"], number

    def ours(
        self, *, padded: bool = False, whole: bool = False, **settings: Any
    ) -> tuple[float, int]:
        """`whole`: of whole prompts, `train.draw: interactions`."""
        drawn = drawn_data(len(self.pairs), whole=True) if whole else self.data
        usual = {"learning_rate": LEARNING_RATE, "dropout": False, "batch_size": BATCH}
        settings = usual | settings
        num_steps = len(self.pairs) // settings["batch_size"]
        config = TrainConfig(max_steps=num_steps, **settings)
        model = reward_model(self.folder)
        model = replace(model, in_rows=model.in_rows and not padded)
        tokens = tokens_of(drawn.lengths, self.num_ids) if whole else self.tokens
        started, steps = 0.0, training_steps(model, config, drawn, tokens, whole=whole)
        for step in steps:
            started = started or time.process_time()
            step()
        return time.process_time() - started, len(self.pairs)

    def useful(self) -> float:
        """Operations per pair."""
        return useful_flops(self.network, self.lengths[self.pairs.ravel()], 3) / len(self.pairs)


class Scoring:
    """The same texts scored by every contender: CPU seconds, and texts."""

    def __init__(self, folder: Path, num_interactions: int) -> None:
        from transformers import AutoTokenizer

        self.folder, self.network = folder, plain_network(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        words = [w for w in self.tokenizer.get_vocab() if w.isalpha() and len(w) > 3]
        rng = np.random.default_rng(3)
        self.prompts: list[list[Text]] = []
        for lengths in interactions(num_interactions):
            prompt = " ".join(rng.choice(sorted(words), min(17, lengths.min() // 2)))
            self.prompts.append(
                [
                    Text((), prompt, " ".join(rng.choice(sorted(words), max(1, n - 20))))
                    for n in lengths
                ]
            )
        self.texts = [text for texts in self.prompts for text in texts]

    @torch.no_grad()
    def papers_loop(self) -> tuple[float, int]:
        """One prompt's responses a batch, in the order of the data."""
        started = time.process_time()
        for texts in self.prompts:
            batch = self.tokenizer(
                [text.prompt for text in texts],
                [text.response for text in texts],
                padding=True,
                truncation=True,
                max_length=LONGEST,
                return_tensors="pt",
            )
            self.network(**batch).logits.squeeze(-1).tolist()
        return time.process_time() - started, len(self.texts)

    def pipeline(self) -> tuple[float, int]:
        from transformers import pipeline

        score = pipeline("text-classification", model=self.network, tokenizer=self.tokenizer)
        inputs = [{"text": text.prompt, "text_pair": text.response} for text in self.texts]
        more = {"truncation": True, "max_length": LONGEST, "function_to_apply": "none"}
        started = time.process_time()
        score(inputs, batch_size=16, **more)
        return time.process_time() - started, len(self.texts)

    def ours(self, **settings: Any) -> tuple[float, int]:
        model = replace(reward_model(self.folder), **settings)
        started = time.process_time()
        score_texts(model, self.texts)
        return time.process_time() - started, len(self.texts)

    def useful(self) -> float:
        """Operations per text."""
        lengths = reward_model(self.folder).renderer.encode(self.texts).lengths
        return useful_flops(self.network, lengths, 1) / len(self.texts)


def reward_model(folder: Path) -> RewardModel:
    config = ModelConfig(path=str(folder), max_length=LONGEST, new_head=True)
    renderer = load_renderer(folder, config)
    return load_reward_model(folder, config, renderer, device="cpu", seed=0)


Contenders = dict[str, Callable[[], tuple[float, float]]]


def table(title: str, unit: str, contenders: Contenders, bench: Any, base: list[str]) -> None:
    """Each contender's speed in both rounds, its useful share, and ratios to those in `base`."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    peaks = []
    for _ in range(2):
        peaks.append(gemm_flops(bench.network))
        for name, run in contenders.items():
            seconds, number = run()
            speeds[name].append(number / seconds)
            print(f"  {name}: {number / seconds:.2f} {unit}", flush=True)
    useful = bench.useful()
    base = [name for name in base if name in speeds]
    heads = "".join(f" times {name} |" for name in base)
    print(f"\n| {title} | {unit} | useful share |{heads}\n|---|---|---|{'---|' * len(base)}")
    for name, found in speeds.items():
        shares = [speed * useful / peak for speed, peak in zip(found, peaks, strict=True)]
        cells = [", ".join(f"{speed:.2f}" for speed in found)]
        cells.append("-" if "bf16" in name else " to ".join(f"{s:.0%}" for s in sorted(shares)))
        for other in base:
            ratios = sorted(a / b for a, b in zip(found, speeds[other], strict=True))
            cells.append(" to ".join(f"{ratio:.2f}" for ratio in ratios))
        print(f"| {name} | {' | '.join(cells)} |")
    print(
        f"\nOne product: {', '.join(f'{peak / 1e9:.0f}' for peak in peaks)} GFLOP/s.\n", flush=True
    )


def training_table(folder: Path, num_steps: int) -> None:
    bench = Training(folder, num_steps)
    contenders: Contenders = {"the paper's recipe": bench.papers_recipe}
    try:
        import trl  # noqa: F401
    except ImportError as error:
        print(f"TRL is left out: {error}")
    else:
        contenders["TRL, defaults"] = bench.trl
        contenders["TRL, grouped by length"] = partial(bench.trl, by_length=True)
    contenders |= {
        "ours, padded": partial(bench.ours, padded=True),
        "ours": bench.ours,
        "ours, whole prompts": partial(bench.ours, whole=True),
        "ours, bf16": partial(bench.ours, precision="bf16"),
    }
    table("training", "pairs/s", contenders, bench, [*list(contenders)[:3], "ours"])


def scoring_table(folder: Path) -> None:
    bench = Scoring(folder, 30)
    contenders: Contenders = {
        "the paper's loop": bench.papers_loop,
        "transformers.pipeline, batches of 16": bench.pipeline,
        "ours": bench.ours,
        "ours, bf16": lambda: bench.ours(precision="bf16"),
    }
    table("scoring", "texts/s", contenders, bench, list(contenders)[:2])


def budgets_table(folder: Path) -> None:
    """One step of 24 pairs, divided into rows of so many tokens."""
    bench = Training(folder, num_steps=3)
    contenders: Contenders = {
        f"{tokens} tokens a row": partial(bench.ours, batch_size=24, micro_batch_tokens=tokens)
        for tokens in (1_024, 2_048, 8_192)
    }
    table("budgets", "pairs/s", contenders, bench, ["2048 tokens a row"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("tables", nargs="*", default=["training", "scoring"])
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    quiet_transformers()
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, torch", end=" ")
    print(f"{torch.__version__}, one thread\n", flush=True)
    folder = given.model.resolve()
    if "training" in given.tables:
        training_table(folder, given.steps)
    if "scoring" in given.tables:
        scoring_table(folder)
    if "budgets" in given.tables:
        budgets_table(folder)


if __name__ == "__main__":
    main()
