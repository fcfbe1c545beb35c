"""A scorer whose rewards can be worked out by hand, in place of models."""

import threading
from collections.abc import Mapping, Sequence

from scpo_ray.serve.items import Reward, RewardItem, checked_item
from scpo_ray.serve.measures import Measures
from scpo_ray.serve.service import Service, Source
from scpo_ray.settings.serve import ServeConfig


def worth(text: str, culture: str) -> float:
    """How often the culture's first letter stands in the text, plus a tenth of its length."""
    return text.lower().count(culture[0].lower()) + len(text) / 10


class LetterRewards:
    """`CultureRewards`, but for models: see `worth`. A response "bad" raises.

    `gate`: batches wait until it is set. `batches`: the number of items of each.
    """

    def __init__(self, cultures: Sequence[str] = ("Chile", "Mexico"), bonus: float = 0.0) -> None:
        self.cultures = tuple(cultures)
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self._bonus = bonus

    def rewards(self, items: Sequence[RewardItem]) -> list[Reward]:
        self.gate.wait(30)
        self.batches.append(len(items))
        return [self._reward(item) for item in items]

    def _reward(self, item: RewardItem) -> Reward:
        asked = checked_item(item, self.cultures)
        if item.response == "bad":
            raise RuntimeError("a fault in the model's code")
        said = f"{asked.text.prompt} {asked.text.response}"
        value = sum(weight * worth(said, culture) for culture, weight in asked.weights)
        value += self._bonus
        return Reward(asked.name, value, value / 2, value / (1 + value), value - 1, value + 1)


def letter_service(scorer: LetterRewards | None = None, **settings: float) -> Service:
    """A service of one scorer, which never moves."""
    scorer = scorer or LetterRewards()
    models = {culture: f"{culture.lower()}:1" for culture in scorer.cultures}

    def load(resolved: Mapping[str, str]) -> LetterRewards:
        return scorer

    config = ServeConfig.model_validate(settings)
    return Service(Source(lambda: models, load), config, Measures())
