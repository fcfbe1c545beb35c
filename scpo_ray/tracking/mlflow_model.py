"""The MLflow model as code: an exported folder that gives rewards to prompts and responses.

A script, not a module: MLflow copies it beside the logged weights and runs it when the model is
loaded, so a registered model needs no pickle. `scpo_ray.tracking.trackers` logs it.
"""

import os
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext


class LoggedRewardModel(PythonModel):  # type: ignore[misc]  # mlflow comes without types
    """Columns `prompt` and `response`, or `messages` (a conversation that ends in the response),
    in; column `reward` out.

    It computes on a GPU if there is one, or where MLFLOW_DEFAULT_PREDICTION_DEVICE says.
    """

    def load_context(self, context: PythonModelContext) -> None:
        from scpo_ray.models.export import load_exported
        from scpo_ray.models.reward_model import resolve_device
        from scpo_ray.storage.scale_file import load_scale

        folder = context.artifacts["model"]
        device = os.environ.get("MLFLOW_DEFAULT_PREDICTION_DEVICE") or resolve_device("auto")
        self.reward_model = load_exported(folder, device=device)
        self.scale = load_scale(Path(folder))
        self.cultures = list((context.model_config or {}).get("cultures", []))

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """One float32 reward per row, in the rows' order and under their index.

        Args:
            params: `culture`: whose reward is asked for, refused if it is not this model's; ""
                asks for none. `scale`: "raw", "standardised" or "probability".

        Raises: InputError naming the row, the culture or the scale.
        """
        from scpo_ray.models.scoring import score_texts

        asked = {"culture": "", "scale": "raw"} | (params or {})
        self._check(asked)
        texts = [_text(row, number) for number, row in enumerate(_rows(model_input))]
        rewards = self._scaled(score_texts(self.reward_model, texts), asked["scale"])
        return pd.DataFrame({"reward": rewards.astype(np.float32)}, index=model_input.index)

    def _check(self, asked: dict[str, Any]) -> None:
        from scpo_ray.records import InputError

        if asked["culture"] and asked["culture"] not in self.cultures:
            known = ", ".join(self.cultures)
            raise InputError(f"culture = {asked['culture']!r}: this model is of {known}")
        if asked["scale"] not in ("raw", "standardised", "probability"):
            rule = "must be raw, standardised or probability"
            raise InputError(f"scale = {asked['scale']!r}: {rule}")
        if asked["scale"] != "raw" and self.scale is None:
            raise InputError(f"scale = {asked['scale']!r}: the model was saved without a scale")

    def _scaled(self, rewards: Any, scale: str) -> Any:
        from scpo_ray.evaluation.scales import reference_probabilities, standardised

        if scale == "raw" or self.scale is None:
            return rewards
        change = standardised if scale == "standardised" else reference_probabilities
        return change(rewards, self.scale)


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows without the cells that are empty."""
    return [
        {name: value for name, value in row.items() if _is_there(value)}
        for row in frame.to_dict("records")
    ]


def _is_there(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and np.isnan(value))


def _text(row: dict[str, Any], number: int) -> Any:
    from scpo_ray.records import InputError, Text

    if "messages" not in row:
        if not {"prompt", "response"} <= row.keys():
            raise InputError(f"row {number}: give prompt and response, or messages")
        return Text(history=(), prompt=row["prompt"], response=row["response"])
    turns = [(message.get("role"), message.get("content")) for message in row["messages"]]
    if {"prompt", "response"} & row.keys():
        raise InputError(f"row {number}: give prompt and response, or messages, one of them")
    if [role for role, _ in turns[-2:]] != ["user", "assistant"]:
        raise InputError(f"row {number}: messages must end with a user's and an assistant's")
    if any(not isinstance(part, str) for turn in turns for part in turn):
        raise InputError(f"row {number}: each of messages must have role and content as text")
    return Text(history=tuple(turns[:-2]), prompt=turns[-2][1], response=turns[-1][1])


mlflow.models.set_model(LoggedRewardModel())
