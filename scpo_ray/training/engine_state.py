"""An engine's state on disk: each worker's part of every weight, readable by any other engine.

A weight is flattened and may be divided: `state.safetensors` of a worker holds pieces named
`<weight>|<start>|<kind>`, kind being the weight itself or one of AdamW's two moments. The pieces
of all workers together make the whole, however many there were and whoever had what.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHT = "weight"
_FILE = "state.safetensors"


@dataclass(frozen=True)
class Piece:
    """Values `start` to `start + n` of a flattened weight.

    `values`: kind -> (n,) tensor; without the moments before the first step.
    """

    name: str
    start: int
    values: dict[str, Tensor]


def write_state(folder: Path, pieces: Iterable[Piece], *, steps_done: int) -> None:
    """Writes one worker's pieces into its folder."""
    tensors = {
        f"{piece.name}|{piece.start}|{kind}": values.detach().contiguous().cpu()
        for piece in pieces
        for kind, values in piece.values.items()
    }
    save_file(tensors, folder / _FILE, metadata={"steps_done": str(steps_done)})


class State:
    """What the workers of a checkpoint wrote, read piece by piece when asked for."""

    def __init__(self, checkpoint: Path) -> None:
        """Raises: ValueError if the checkpoint holds no state."""
        paths = sorted(checkpoint.glob(f"worker-*/{_FILE}"))
        if not paths:
            raise ValueError(f"{checkpoint}: no {_FILE} in it")
        self._files = [safe_open(path, framework="pt") for path in paths]
        self._pieces: dict[tuple[str, str], list[tuple[int, Any, str]]] = {}
        for file in self._files:
            for key in file.keys():  # type: ignore[no-untyped-call]
                name, start, kind = key.rsplit("|", 2)
                self._pieces.setdefault((name, kind), []).append((int(start), file, key))
        metadata = self._files[0].metadata()  # type: ignore[no-untyped-call]
        self.steps_done = int(metadata["steps_done"])

    def has_moments(self, name: str) -> bool:
        return (name, MOMENTS[0]) in self._pieces

    def read(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        """(stop - start,) values of a flattened weight, on the CPU; zeros beyond its end."""
        values = torch.zeros(stop - start)
        for begin, file, key in self._pieces[name, kind]:
            piece = file.get_slice(key)
            end = begin + piece.get_shape()[0]
            low, high = max(start, begin), min(stop, end)
            if low < high:
                values[low - start : high - start] = piece[low - begin : high - begin]
        return values


def divided(numel: int, rank: int, world_size: int) -> tuple[int, int]:
    """Start and stop of a worker's share of `numel` values, near-equal and in order of rank."""
    return numel * rank // world_size, numel * (rank + 1) // world_size
