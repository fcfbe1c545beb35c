"""One run: every setting, its default and its check. The string below a field is its help text."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from scpo_ray.settings.countries import country_names
from scpo_ray.settings.data import OpinionsConfig, PreferencesConfig, PrismConfig, SyntheticConfig
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
from scpo_ray.settings.tracking import TrackingConfig
from scpo_ray.settings.train import TrainConfig

_DATABASE = "mlflow.db"


class RunConfig(Section):
    experiment: str = Field("scpo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Groups runs: a folder below `output_dir` and an MLflow experiment. Not cache, mlartifacts,
    mlflow.db or ray, which stand there already."""

    method: MethodName = "scpo"
    """global (no training), finetune (all pairs), filter, weight, inverse, scpo; or one of the
    rivals pooled, group_dro, shared_offset, lore, gpo (opinions alone)."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Order of the pairs, dropout, a new head, the bootstrap: each its own stream of it."""

    output_dir: Path = Path("runs")
    """Everything a run writes lies below it; ~ at its beginning is your home."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""

    culture_weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """How much each culture's pairs count in the mixture; null: every culture at 1."""

    data: Annotated[
        PrismConfig | PreferencesConfig | OpinionsConfig | SyntheticConfig,
        Field(discriminator="source"),
    ] = PrismConfig()
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

    @field_validator("experiment")
    @classmethod
    def experiment_is_no_folder_of_ours(cls, value: str) -> str:
        # File systems that do not tell "Cache" from "cache" exist.
        if value.lower() in ("cache", "mlartifacts", "ray") or value.lower().startswith(_DATABASE):
            raise ValueError(f"{value!r} is what output_dir or launch.storage needs for itself")
        return value

    @field_validator("output_dir")
    @classmethod
    def home_is_written_out(cls, value: Path) -> Path:
        try:
            return value.expanduser()
        except RuntimeError:
            raise ValueError(
                f"no user has the home {value.parts[0]!r}; write ./~ for a name"
            ) from None

    @model_validator(mode="before")
    @classmethod
    def countries_have_one_name(cls, document: Any) -> Any:
        if isinstance(document, dict) and is_opinions(document):
            weights = document.get("culture_weights")
            if isinstance(weights, dict):
                return document | {"culture_weights": with_country_names(weights)}
        return document

    @model_validator(mode="after")
    def settings_agree(self) -> Self:
        if "\0" in str(self.output_dir):
            raise ValueError("output_dir: a path cannot hold a NUL character")
        if self.tracking.tracker == "mlflow" and not self.tracking.uri:
            path = str(self.output_dir.resolve())
            if re.search(r"\?|%[0-9A-Fa-f]{2}", path):
                raise ValueError(
                    f"output_dir: MLflow's database cannot lie in {path!r}, since a URI reads ? "
                    "and % with two digits as something else: rename it, or set tracking.uri or "
                    "tracking.tracker"
                )
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
        return self.tracking.uri or f"sqlite:///{(self.output_dir / _DATABASE).resolve()}"


# Where a run is computed, written and tracked decides nothing of its result but its rounding: a
# run resumed on other workers, in another place, is still the same run.
EXECUTION: dict[str, Any] = {
    "output_dir": True,
    "tracking": True,
    "device": True,
    "launch": True,
    "train": {"num_workers", "engine", "zero_stage", "offload_optimizer", "deepspeed_config"},
}


def is_opinions(run: dict[str, Any]) -> bool:
    """Whether a run's settings, not yet checked, read opinions: there countries have one name."""
    data = run.get("data")
    source = data.get("source") if isinstance(data, dict) else getattr(data, "source", None)
    return source == "opinions"


def with_country_names(weights: dict[Any, Any]) -> dict[Any, Any]:
    """Weights by the countries' one name. Raises: ValueError if two are the same country."""
    names = country_names(list(weights), "culture_weights")
    return dict(zip(names, weights.values(), strict=True))


def _check_method(method: MethodName, run: RunConfig) -> None:
    if METHODS[method].few_shot and run.data.source != "opinions":
        raise ValueError(
            f"method {method!r} predicts answers to survey questions: it needs data.source "
            f'"opinions", got "{run.data.source}"'
        )
    if run.model.new_head and (method == "global" or METHODS[method].needs_global_model):
        raise ValueError(
            f"method {method!r} needs a trained global model, but model.new_head gives "
            'the model an untrained head; make one first with method "finetune"'
        )
