"""The MLflow model as code: an exported folder that gives rewards to prompts and responses.

A script, not a module: MLflow copies it beside the logged weights and runs it when the model is
loaded, so a registered model needs no pickle. `scpo_ray.tracking.trackers` logs it.
"""

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext


class LoggedRewardModel(PythonModel):  # type: ignore[misc]  # mlflow comes without types
    """Columns `prompt` and `response` (text, without history) in, column `reward` out."""

    def load_context(self, context: PythonModelContext) -> None:
        from scpo_ray.models.export import load_exported

        self.reward_model = load_exported(context.artifacts["model"], device="cpu")

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """One float32 reward per row, in the rows' order and under their index."""
        from scpo_ray.models.scoring import score_texts
        from scpo_ray.records import Text

        texts = [
            Text(history=(), prompt=prompt, response=response)
            for prompt, response in zip(model_input["prompt"], model_input["response"], strict=True)
        ]
        rewards = score_texts(self.reward_model, texts)
        return pd.DataFrame({"reward": rewards}, index=model_input.index)


mlflow.models.set_model(LoggedRewardModel())
