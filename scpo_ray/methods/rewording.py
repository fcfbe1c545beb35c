"""The global model's rewards of texts whose prompts are worded otherwise: a way to fit."""

from collections.abc import Callable
from dataclasses import replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from scpo_ray.data.hashes import text_hash
from scpo_ray.methods.task import Fitted, Task
from scpo_ray.records import Text, TextSource
from scpo_ray.training.loop import nothing_trained


class RewordedTexts(TextSource):
    """Some of a source's texts, their prompts changed by `reword`."""

    def __init__(
        self, texts: TextSource, ids: NDArray[np.int64], reword: Callable[[str], str]
    ) -> None:
        self._texts, self._ids, self._reword = texts, ids, reword
        # As in any data: what was scored once is not scored again.
        self.hashes = np.array(
            [text_hash(self[place]) for place in range(len(ids))], dtype=np.uint64
        )

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> Text: ...
    @overload
    def __getitem__(self, index: slice) -> list[Text]: ...
    def __getitem__(self, index: int | slice) -> Text | list[Text]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        text = self._texts[int(self._ids[index])]
        return replace(text, prompt=self._reword(text.prompt))

    def place(self, index: int) -> str:
        return self._texts.place(int(self._ids[index]))


def reworded_rewards(task: Task, reword: Callable[[str], str]) -> Fitted:
    """No training: each text's reward is the global model's for the reworded prompt."""

    def rewards(texts: NDArray[np.int64]) -> NDArray[np.float32]:
        return task.base.rewards(RewordedTexts(task.data.texts, texts, reword))

    told = f"Prompts are read as {reword('<prompt>')!r}."
    return Fitted(rewards, nothing_trained(), (told,), makes_model=False)
