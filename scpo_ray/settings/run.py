"""One run: every setting, its default and its check. The string below a field is its help text."""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    create_model,
    field_validator,
    model_validator,
)

from scpo_ray.records import InputError
from scpo_ray.settings.data import SOURCES, DataSection, section_of_source
from scpo_ray.settings.evaluation import EvaluationConfig
from scpo_ray.settings.launch import LaunchConfig
from scpo_ray.settings.methods import METHODS, Method
from scpo_ray.settings.model import ModelConfig
from scpo_ray.settings.section import Section
from scpo_ray.settings.selection import SelectionConfig
from scpo_ray.settings.spelling import Spell, keys_spelled_once, nearest_names, plain_name
from scpo_ray.settings.tracking import TrackingConfig
from scpo_ray.settings.train import TrainConfig

_DATABASE = "mlflow.db"


def _known(name: str) -> str:
    if name not in METHODS.names():
        near = nearest_names(name, METHODS.names())
        raise ValueError(f"there is no method {name!r}; nearest: {near}")
    try:
        METHODS[name]
    except InputError as error:
        raise ValueError(str(error)) from None
    return name


def _method_sections(document: Any) -> Any:
    """The sections of single methods, each checked by its method's own class."""
    if not isinstance(document, dict):
        return document
    names = tuple(sorted(str(name) for name in document))
    sections = _sections_of(names).model_validate(document)
    return {name: getattr(sections, name) for name in names}


@cache
def _sections_of(names: tuple[str, ...]) -> type[Section]:
    classes = {n: METHODS[n].settings for n in names if n in METHODS.names()}
    fields: dict[str, Any] = {n: (each, each()) for n, each in classes.items() if each}
    sections: type[Section] = create_model("MethodSections", __base__=Section, **fields)
    return sections


MethodName = Annotated[str, AfterValidator(_known)]
MethodSections = Annotated[dict[str, SerializeAsAny[Section]], BeforeValidator(_method_sections)]


class RunConfig(Section):
    experiment: str = "scpo"
    """Groups runs: a folder below `output_dir` and an MLflow experiment. Not cache, mlartifacts,
    mlflow.db or ray, which stand there already."""

    method: MethodName = "scpo"
    """How the model is made; docs/method.md says what each does."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Order of the pairs, dropout, a new head, the bootstrap: each its own stream of it."""

    output_dir: Path = Path("runs")
    """Everything a run writes lies below it; ~ at its beginning is your home."""

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

    methods: MethodSections = {}
    """What single methods have of their own, each below its name."""

    evaluation: EvaluationConfig = EvaluationConfig()
    """Layers, intervals, examples."""

    tracking: TrackingConfig = TrackingConfig()
    """MLflow, JSON lines or none."""

    launch: LaunchConfig = LaunchConfig()
    """Where the workers run, and what they reserve."""

    @field_validator("experiment")
    @classmethod
    def experiment_is_a_folder_of_its_own(cls, value: str) -> str:
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value) is None:
            raise ValueError(
                f"{value!r} must be a folder's name: letters, digits, '.', '_' and '-', the first "
                "a letter or a digit, at most 100"
            )
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
        check_method(self.method, self)
        if self.launch.storage and self.tracking.tracker == "mlflow" and not self.tracking.uri:
            raise ValueError(
                "launch.storage is for machines without a common disk, and so without a common "
                "mlflow.db: set tracking.uri to a server, or tracking.tracker to jsonl"
            )
        if self.model.dtype == "nf4" and self.train.zero_stage == 3:
            raise ValueError(
                "model.dtype nf4: weights in 4 bits are not divided by ZeRO 3; use "
                "train.zero_stage 2 or less, or model.dtype bfloat16"
            )
        budget = self.train.micro_batch_tokens
        if budget != "auto" and budget < 2 * self.model.max_length:
            raise ValueError(
                f"train.micro_batch_tokens {budget} must hold one pair: "
                f"at least 2 x model.max_length {self.model.max_length}"
            )
        return self

    @model_validator(mode="after")
    def soft_labels_have_shares(self) -> Self:
        if self.train.soft_labels and not self.data.scores_are_votes:
            raise ValueError(
                "train.soft_labels needs data that says how many preferred each response, and "
                f'data.source "{self.data.source}" as set here does not: set '
                "data.columns.chosen_share (or chosen_votes and rejected_votes) of preferences, or "
                "use opinions"
            )
        return self

    @property
    def how(self) -> Method:
        """The method that `method` names."""
        return METHODS[self.method]

    @property
    def own_settings(self) -> Section | None:
        """The method's own section, if it has one."""
        section = self.how.settings
        return None if section is None else self.methods.get(self.method, section())

    @property
    def cultures_learned_from(self) -> list[str] | None:
        """As far as the settings name them; None: all of the data."""
        if self.culture_weights is None or self.how.learns_from_all:
            return self.data.cultures
        return [culture for culture, weight in self.culture_weights.items() if weight > 0]

    @property
    def run_id(self) -> str:
        """Hash of what decides the model; who computes it, where it goes and how it is looked at
        do not count."""
        exclude = {"experiment": True, "methods": True, **merged(EXECUTION, OBSERVATION)}
        document = self.model_dump(mode="json", exclude=exclude)
        learned = self.cultures_learned_from
        document["data"]["cultures"] = None if learned is None else sorted(learned)
        if self.culture_weights is not None:
            document["culture_weights"] = {c: w for c, w in self.culture_weights.items() if w > 0}
        own = self.own_settings
        document["method"] = [self.method, self.how.version, own and own.model_dump(mode="json")]
        _leave_out_later(document)
        return _hash_of(document)

    @property
    def evaluation_id(self) -> str:
        """Hash of what decides the numbers that the model gets, but for what the data holds."""
        looked_at = [self.data.cultures, self.evaluation.model_dump(mode="json")]
        return _hash_of({"run": self.run_id, "evaluation": looked_at})

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
    "model": {"attention"},
    "train": {
        "micro_batch_tokens",
        "num_workers",
        "engine",
        "zero_stage",
        "offload_optimizer",
        "deepspeed_config",
    },
}

# What is looked at, and how often, changes no number of the model.
OBSERVATION: dict[str, Any] = {
    "evaluation": True,
    "train": {"log_every", "checkpoint_every", "keep_checkpoints"},
    "model": {"inference_batch_tokens"},
}

# Settings that are younger than runs that exist: where they say what those runs did, they do not
# count, so that a run that has ended is found again.
_LATER: dict[tuple[str, ...], Any] = {
    ("train", "soft_labels"): False,
    ("data", "columns", "chosen_share"): None,
}


def _leave_out_later(document: dict[str, Any]) -> None:
    for (*sections, name), default in _LATER.items():
        section: Any = document
        for each in sections:
            section = section.get(each, {})
        if name in section and section[name] == default:
            del section[name]


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two sets of settings as one: section -> True for all of it, or names in it."""
    both = {**one, **other}
    for section in one.keys() & other.keys():
        whole = one[section] is True or other[section] is True
        both[section] = True if whole else one[section] | other[section]
    return both


def spelling_of(run: dict[str, Any]) -> Spell:
    """How a run's data spells its cultures; the settings are not yet checked."""
    data = run.get("data")
    if isinstance(data, DataSection):
        return data.culture_name
    try:
        return SOURCES[data["source"]].settings.culture_name  # type: ignore[index]
    except (TypeError, LookupError, InputError):  # told where the section is checked
        return plain_name


def check_method(name: str, run: RunConfig) -> None:
    """Raises: ValueError if the method cannot be run with these settings."""
    method = METHODS[name]
    method.check_settings(run)
    if run.model.new_head and (method.needs_global_model or not method.trains):
        raise ValueError(
            f"method {name!r} needs a trained global model, but model.new_head gives "
            'the model an untrained head; make one first with method "finetune"'
        )


def _hash_of(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:12]
