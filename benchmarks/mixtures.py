"""Mixtures of cultures chosen at inference, beside a model trained on the mixture, where the truth
is known: of the synthetic source, the share of a mixed population that prefers one text to another.

`python benchmarks/mixtures.py FOLDER` makes a global model and, for each of SEEDS, one model of
North, one of South and one trained on half of each (finetune, the quickstart's people and steps),
and judges pairs of held-out texts by each way to mix. Accuracy is against what the majority of the
mixed population prefers, log loss against the share of it that does, both in the limit of many
people. Each way has one temperature, fitted on the training pairs of the two cultures; "people" has
each culture's own.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, xlogy
from scipy.stats import norm

from scpo_ray.commands.rewards import merge_by_weight
from scpo_ray.data.loading import load_preferences
from scpo_ray.data.synthetic import (
    NUM_FEATURES,
    TASTE_WORDS,
    SyntheticConfig,
    culture_tastes,
    vocabulary,
)
from scpo_ray.launch.runs import start_run
from scpo_ray.models.tiny import make_tiny_backbone
from scpo_ray.records import Pairs, TextSource
from scpo_ray.serve.core import CultureRewards
from scpo_ray.serve.items import RewardItem
from scpo_ray.settings.model import LoraConfig, ModelConfig
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.train import TrainConfig

CULTURES = ("North", "South")
SHARES = ((0.5, 0.5), (0.8, 0.2))
SEEDS = (0, 1, 2)


def people() -> SyntheticConfig:
    """Two cultures that part from each other, and a majority that the global model is of."""
    return SyntheticConfig(
        source="synthetic",
        users={"Majority": 120, "North": 80, "South": 80},
        interactions_per_user=8,
        taste_distance=0.5,
    )


def trained(
    folder: Path, model: Path, seed: int, weights: dict[str, float], **more: object
) -> Path:
    config = RunConfig(
        experiment="mixtures",
        method="finetune",
        seed=seed,
        output_dir=folder,
        culture_weights=weights,
        data=people(),
        model=ModelConfig(path=str(model), max_length=48, **more),
        train=TrainConfig(batch_size=32, max_steps=100, learning_rate=5e-4, dropout=False),
        tracking={"tracker": "none"},
    )
    return start_run(config)[1]


def global_model(folder: Path) -> Path:
    backbone = folder / "backbone"
    if not backbone.is_dir():
        make_tiny_backbone(backbone, vocabulary(), seed=0)
    config = RunConfig(
        experiment="mixtures-global",
        method="finetune",
        output_dir=folder,
        culture_weights={"Majority": 1.0},
        data=people(),
        model=ModelConfig(path=str(backbone), max_length=48, new_head=True),
        train=TrainConfig(
            batch_size=32, max_steps=400, learning_rate=2e-3, warmup_steps=20, dropout=False
        ),
        tracking={"tracker": "none"},
    )
    return start_run(config)[1] / "model"


def features_of(texts: TextSource) -> NDArray[np.float64]:
    """(T, F) what tastes judge: words for minus words against, of each response."""
    signs = [{w: 1 for w in plus} | {w: -1 for w in minus} for plus, minus in TASTE_WORDS]
    return np.array(
        [
            [sum(sign.get(word, 0) for word in text.response.split()) for sign in signs]
            for text in (texts[t] for t in range(len(texts)))
        ],
        dtype=np.float64,
    )


def preferring(differences: NDArray[np.float64], culture: str) -> NDArray[np.float64]:
    """(P,) share of a culture's people who prefer the first text of a pair, from the features'
    differences (P, F): a person's taste is the culture's and noise, an outlier's is any."""
    config = people()
    taste = culture_tastes(config)[list(config.users).index(culture)]
    spread = config.person_noise * np.linalg.norm(differences, axis=1) / np.sqrt(NUM_FEATURES)
    like_us = norm.cdf(differences @ taste / np.maximum(spread, 1e-12))
    return np.asarray((1 - config.outlier_share) * like_us + config.outlier_share / 2)


def log_loss(share: NDArray[np.float64], said: NDArray[np.float64]) -> float:
    said = np.clip(said, 1e-9, 1 - 1e-9)
    return float(-(xlogy(share, said) + xlogy(1 - share, 1 - said)).mean())


def fitted(margins: NDArray[np.float64]) -> float:
    """The temperature at which sigmoid(margin / T) says best that each is preferred."""
    found = minimize_scalar(
        lambda log_t: np.logaddexp(0, -margins / np.exp(log_t)).mean(), bounds=(-7, 7)
    )
    return float(np.exp(found.x))


def of_cultures(pairs: Pairs) -> Pairs:
    codes = [code for code, culture in enumerate(pairs.cultures) if culture in CULTURES]
    return pairs.take(np.isin(pairs.culture_codes, codes))


class Judge:
    """Every way's margins of pairs, from the rewards of the texts."""

    def __init__(self, models: dict[str, str], texts: TextSource, shares: tuple[float, float]):
        self.rewards = CultureRewards.load(models)
        self.texts = [texts[t] for t in range(len(texts))]
        self.mix = dict(zip(CULTURES, shares, strict=True))
        self.cached: dict[str, NDArray[np.float64]] = {}

    def values(self, **asked: object) -> NDArray[np.float64]:
        key = str(asked)
        if key not in self.cached:
            items = [RewardItem(t.response, t.prompt, **asked) for t in self.texts]
            self.cached[key] = np.array([r.value for r in self.rewards.rewards(items)])
        return self.cached[key]

    def margins(self, way: str, pairs: Pairs) -> NDArray[np.float64]:
        how = {"how": way, "mix": self.mix} if way in ("linear", "worst") else {"culture": way}
        values = self.values(**how)
        return values[pairs.chosen] - values[pairs.rejected]

    def temperatures(self, train: Pairs) -> dict[str, float]:
        found = {}
        for culture in CULTURES:
            mine = train.take(train.culture_codes == train.cultures.index(culture))
            found[culture] = fitted(self.margins(culture, mine))
        return found

    def probabilities(self, way: str, train: Pairs, test: Pairs) -> NDArray[np.float64]:
        if way != "people":
            # As many pairs of each culture as the population has of it.
            weights = [self.mix[train.cultures[code]] for code in train.culture_codes]
            rng = np.random.default_rng(0)
            drawn = rng.choice(len(train), len(train), p=np.array(weights) / np.sum(weights))
            temperature = fitted(self.margins(way, train.take(drawn)))
            return expit(self.margins(way, test) / temperature)
        temperatures = self.temperatures(train)
        return np.sum(
            [self.mix[c] * expit(self.margins(c, test) / temperatures[c]) for c in CULTURES], axis=0
        )


def judged(folder: Path, base: Path, lora: bool) -> None:
    data = load_preferences(people(), folder / "cache")
    train, test = of_cultures(data.train), of_cultures(data.test)
    features = features_of(data.texts)
    differences = features[test.chosen] - features[test.rejected]
    more = {"lora": LoraConfig(rank=8)} if lora else {}
    for shares in SHARES:
        truth = sum(
            weight * preferring(differences, culture)
            for culture, weight in zip(CULTURES, shares, strict=True)
        )
        # A pair that the population is divided on evenly has no majority.
        told = np.abs(truth - 0.5) > 1e-9
        right, losses = defaultdict(list), defaultdict(list)
        for seed in SEEDS:
            runs = {c: trained(folder, base, seed, {c: 1.0}, **more) for c in CULTURES}
            mixed = dict(zip(CULTURES, shares, strict=True))
            models = {c: str(run) for c, run in runs.items()}
            models["trained on the mixture"] = str(trained(folder, base, seed, mixed, **more))
            merged = folder / f"merged-{'lora' if lora else 'whole'}-{shares[0]}-{seed}"
            if not merged.is_dir():
                merge_by_weight([f"{runs[c]}={mixed[c]}" for c in CULTURES], merged, "")
            models["merged by weight"], models["global model"] = str(merged), str(base)
            judge = Judge(models, data.texts, shares)
            ways = ("linear", "people", "worst", *models)
            for way in ways:
                said = judge.probabilities(way, train, test)
                right[way].append(float(((said > 0.5) == (truth > 0.5))[told].mean()))
                losses[way].append(log_loss(truth, said))
        kind = "adapters of rank 8" if lora else "whole models"
        best = float(np.maximum(truth, 1 - truth).mean())
        print(f"\n{kind}; {shares[0]:.0%} North, {shares[1]:.0%} South; {told.sum()} pairs; ")
        print(f"the majority is {best:.1%} of the people; log loss of the truth itself: "
              f"{log_loss(truth, truth):.4f}\n")  # fmt: skip
        print("| way | as the majority, % | log loss of the share |")
        print("|---|---|---|")
        for way in right:
            accuracy = f"{100 * np.mean(right[way]):.1f} ± {100 * np.std(right[way], ddof=1):.1f}"
            loss = f"{np.mean(losses[way]):.4f} ± {np.std(losses[way], ddof=1):.4f}"
            print(f"| {way} | {accuracy} | {loss} |")


def main(folder: Path) -> None:
    base = global_model(folder)
    for lora in (False, True):
        judged(folder, base, lora)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
