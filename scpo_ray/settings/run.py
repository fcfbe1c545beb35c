"""One run: every setting, its default and its check. The string below a field is its help text."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from scpo_ray.records import InputError
from scpo_ray.settings.data import SOURCES, DataSection, section_of_source
from scpo_ray.settings.evaluation import EvaluationConfig
from scpo_ray.settings.launch import LaunchConfig
from scpo_ray.settings.methods import (
    METHOD_VERSION,
    METHODS,
    MethodName,
    RivalsConfig,
    SelectionConfig,
)
from scpo_ray.settings.model import ModelConfig
from scpo_ray.settings.section import Section
from scpo_ray.settings.spelling import Spell, keys_spelled_once, plain_name
from scpo_ray.settings.tracking import TrackingConfig
from scpo_ray.settings.train import TrainConfig


class RunConfig(Section):
    experiment: str = Field("scpo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Groups runs: a folder below `output_dir` and an MLflow experiment."""

    method: MethodName = "scpo"
    """global (no training), finetune (all pairs), filter, weight, inverse, scpo; or one of the
    rivals pooled, group_dro, shared_offset, lore, gpo (opinions alone)."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Order of the pairs, dropout, a new head, the bootstrap: each its own stream of it."""

    output_dir: Path = Path("runs")
    """Everything a run writes lies below it."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""

    culture_weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """How much each culture's pairs count in the mixture; null: every culture at 1."""

    data: Annotated[SerializeAsAny[DataSection], BeforeValidator(section_of_source)] = Field(
        default_factory=lambda: SOURCES["prism"].settings.model_validate({"source": "prism"})
    )
    """Where the preferences come from."""

    model: ModelConfig = ModelConfig()
    """The global reward model, which is also where training starts."""

    selection: SelectionConfig = SelectionConfig()
    """Which pairs are kept and how much each counts."""

    train: TrainConfig = TrainConfig()
    """The optimisation."""

    rivals: RivalsConfig = RivalsConfig()
    """What the rival methods have of their own."""

    evaluation: EvaluationConfig = EvaluationConfig()
    """Layers, intervals, examples."""

    tracking: TrackingConfig = TrackingConfig()
    """MLflow, JSON lines or none."""

    launch: LaunchConfig = LaunchConfig()
    """Where the workers run, and what they reserve."""

    @model_validator(mode="before")
    @classmethod
    def cultures_have_one_name(cls, document: Any) -> Any:
        weights = document.get("culture_weights") if isinstance(document, dict) else None
        if isinstance(weights, dict):
            named = keys_spelled_once(weights, "culture_weights", spelling_of(document))
            return document | {"culture_weights": named}
        return document

    @model_validator(mode="after")
    def settings_agree(self) -> Self:
        if "\0" in str(self.output_dir):
            raise ValueError("output_dir: a path cannot hold a NUL character")
        if self.culture_weights is not None and not any(self.culture_weights.values()):
            raise ValueError("culture_weights: at least one must be above 0")
        _check_method(self.method, self)
        if self.launch.storage and self.tracking.tracker == "mlflow" and not self.tracking.uri:
            raise ValueError(
                "launch.storage is for machines without a common disk, and so without a common "
                "mlflow.db: set tracking.uri to a server, or tracking.tracker to jsonl"
            )
        if self.train.micro_batch_tokens < 2 * self.model.max_length:
            raise ValueError(
                f"train.micro_batch_tokens {self.train.micro_batch_tokens} must hold one pair: "
                f"at least 2 x model.max_length {self.model.max_length}"
            )
        return self

    @property
    def run_id(self) -> str:
        """Hash of what decides the result; who computes it and where it goes do not count."""
        exclude = {"experiment": True, "rivals": True, **EXECUTION}
        document = self.model_dump(mode="json", exclude=exclude)
        if self.method in RivalsConfig.model_fields:
            document["rivals"] = getattr(self.rivals, self.method).model_dump(mode="json")
        document["method_version"] = METHOD_VERSION
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def mlflow_uri(self) -> str:
        return self.tracking.uri or f"sqlite:///{(self.output_dir / 'mlflow.db').resolve()}"


# Where a run is computed, written and tracked decides nothing of its result but its rounding: a
# run resumed on other workers, in another place, is still the same run.
EXECUTION: dict[str, Any] = {
    "output_dir": True,
    "tracking": True,
    "device": True,
    "launch": True,
    "train": {"num_workers", "engine", "zero_stage", "offload_optimizer", "deepspeed_config"},
}


def spelling_of(run: dict[str, Any]) -> Spell:
    """How a run's data spells its cultures; the settings are not yet checked."""
    data = run.get("data")
    if isinstance(data, DataSection):
        return data.culture_name
    try:
        return SOURCES[data["source"]].settings.culture_name  # type: ignore[index]
    except (TypeError, LookupError, InputError):  # told where the section is checked
        return plain_name


def _check_method(method: MethodName, run: RunConfig) -> None:
    if METHODS[method].few_shot and not run.data.holds_opinions:
        raise ValueError(
            f"method {method!r} predicts answers to survey questions: it needs data.source "
            f'"opinions", got "{run.data.source}"'
        )
    if run.model.new_head and (method == "global" or METHODS[method].needs_global_model):
        raise ValueError(
            f"method {method!r} needs a trained global model, but model.new_head gives "
            'the model an untrained head; make one first with method "finetune"'
        )
