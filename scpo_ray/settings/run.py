"""Every setting, its default and its check. The string below a field is its help text."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from scpo_ray.settings.countries import country_names

MethodName = Literal[
    "global",
    "finetune",
    "filter",
    "weight",
    "inverse",
    "scpo",
    "pooled",
    "group_dro",
    "shared_offset",
    "lore",
    "gpo",
]

METHOD_VERSION = 1
"""Raised when the same settings come to give another model: earlier runs are then other runs."""

PAPER_CULTURES = (
    "Chile",
    "South Africa",
    "New Zealand",
    "Australia",
    "Mexico",
    "Israel",
    "Canada",
)


@dataclass(frozen=True, slots=True)
class Method:
    """A method as a point of settings: SCPO's own (paper, ablations), then its rivals.

    Attributes:
        trains: the network's weights, by the plan's steps.
        filters, weighting: which pairs, and how much each counts.
        pools: one model for all cultures: in a comparison or a sweep, theirs is one run.
        reweights: cultures count as group DRO says, from step to step.
        heads: what is learned from all cultures' pairs on the frozen network's features, in place
            of its weights; None: nothing.
        few_shot: answer shares are predicted from the frozen features of a country's few known
            answers; for opinions alone.
    """

    trains: bool
    filters: bool
    weighting: Literal["none", "agreement", "inverse"]
    pools: bool = False
    reweights: bool = False
    heads: Literal["offset", "low-rank"] | None = None
    few_shot: bool = False

    @property
    def on_features(self) -> bool:
        """Whether it learns from all cultures on the network's features, and not its weights."""
        return self.heads is not None or self.few_shot

    @property
    def needs_global_model(self) -> bool:
        return self.filters or self.weighting != "none" or self.on_features

    @property
    def needs_cultures(self) -> bool:
        """Whether it learns from several cultures at once, and one alone makes no sense."""
        return self.pools or self.on_features


METHODS: dict[MethodName, Method] = {
    "global": Method(trains=False, filters=False, weighting="none"),
    "finetune": Method(trains=True, filters=False, weighting="none"),
    "filter": Method(trains=True, filters=True, weighting="none"),
    "weight": Method(trains=True, filters=False, weighting="agreement"),
    "inverse": Method(trains=True, filters=False, weighting="inverse"),
    "scpo": Method(trains=True, filters=True, weighting="agreement"),
    "pooled": Method(trains=True, filters=False, weighting="none", pools=True),
    "group_dro": Method(trains=True, filters=False, weighting="none", pools=True, reweights=True),
    "shared_offset": Method(trains=False, filters=False, weighting="none", heads="offset"),
    "lore": Method(trains=False, filters=False, weighting="none", heads="low-rank"),
    "gpo": Method(trains=False, filters=False, weighting="none", few_shot=True),
}

OWN_METHODS: tuple[MethodName, ...] = (
    "global",
    "finetune",
    "filter",
    "weight",
    "inverse",
    "scpo",
)
"""The paper's, which a comparison runs where its space names none; the others are rivals."""


class Section(BaseModel):
    """Frozen, unknown keys refused, field docstrings are the help texts."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class SplitConfig(Section):
    by: Literal["user", "question", "source"] = "user"
    """What is kept on one side: a user, a question, or as the source says (its test files)."""

    test_size: float = Field(0.15, gt=0, lt=1)
    """Share of the users (or questions) held out, over the whole data in file order."""

    seed: int = Field(0, ge=0)
    """Seed of the split alone; 0 with 0.15 by user gives the paper's test sets on PRISM."""

    num_folds: int | None = Field(None, ge=2)
    """Instead of `test_size`: this many user-disjoint folds per culture."""

    fold: int = Field(0, ge=0)
    """Which of the folds is held out."""

    @model_validator(mode="after")
    def fold_exists(self) -> Self:
        if self.num_folds is None and self.fold:
            raise ValueError(f"fold {self.fold} needs num_folds")
        if self.num_folds is not None and self.fold >= self.num_folds:
            raise ValueError(f"fold {self.fold} must be below num_folds {self.num_folds}")
        return self


class DataSection(Section):
    cultures: list[str] | None = None
    """Cultures to read, train on and evaluate, spelled as in the data; null: all."""

    data_fraction: float = Field(1.0, gt=0, le=1)
    """Share of each culture's training users (or questions) used; smaller ones are nested."""

    split: SplitConfig = SplitConfig()
    """How train and test are told apart."""

    @model_validator(mode="after")
    def cultures_are_named_once(self) -> Self:
        if self.cultures is not None:
            twice = sorted({c for c in self.cultures if self.cultures.count(c) > 1})
            if twice or not self.cultures:
                raise ValueError(f"cultures must be named once each, got {self.cultures}")
        return self

    @property
    def min_score_gap(self) -> float:
        """Two responses whose scores are no further apart make no pair."""
        return 0.0


class PrismConfig(DataSection):
    source: Literal["prism"] = "prism"
    """PRISM: people from 75 countries scored the replies of language models."""

    path: str = "HannahRoseKirk/prism-alignment"
    """A folder with survey.jsonl and utterances.jsonl (plain or .gz), or a hub data set."""

    cultures: list[str] | None = list(PAPER_CULTURES)
    """Countries where the users live (`reside_country`); the default is the paper's seven."""

    history: bool = False
    """Put the conversation's earlier turns before the prompt (the paper does not)."""


class ColumnMap(Section):
    prompt: str | None = "prompt"
    """Text or chat messages; null where `chosen` and `rejected` hold whole conversations."""

    chosen: str = "chosen"
    """The preferred response: text or chat messages."""

    rejected: str = "rejected"
    """The other response."""

    responses: str | None = None
    """A list of responses, with `scores`; then `chosen` and `rejected` are not read."""

    scores: str | None = None
    """A list of numbers, one per response; a higher one is preferred."""

    culture: str = "culture"
    """The group label."""

    user: str | None = None
    """Who preferred; intervals resample users."""

    question: str | None = None
    """Groups rows where no user is known; intervals then resample questions."""

    id: str | None = None
    """A unique name of the row; null: the file's name and line."""

    @model_validator(mode="after")
    def responses_have_scores(self) -> Self:
        if (self.responses is None) != (self.scores is None):
            raise ValueError("responses and scores are set together or not at all")
        return self


class PreferencesConfig(DataSection):
    source: Literal["preferences"]
    """Any preferences: files of yours or a hub data set, columns named by `columns`."""

    train_files: list[str] = []
    """JSONL, CSV or Parquet, by ending; .gz too for the first two."""

    test_files: list[str] = []
    """Held-out files; with them `split.by` is "source"."""

    hub: str | None = None
    """A hub data set instead of files, as "owner/name"."""

    hub_train_split: str = "train"
    """The hub data set's split to train on."""

    hub_test_split: str | None = None
    """The hub data set's held-out split; with it `split.by` is "source"."""

    columns: ColumnMap = ColumnMap()
    """Which column holds what."""

    @model_validator(mode="after")
    def one_place_to_read(self) -> Self:
        if bool(self.train_files) == bool(self.hub):
            raise ValueError("set either train_files or hub")
        has_test = bool(self.test_files) if self.train_files else self.hub_test_split is not None
        if self.test_files and self.hub:
            raise ValueError("test_files go with train_files, not with hub")
        if has_test != (self.split.by == "source"):
            raise ValueError(
                'test files (or hub_test_split) and split.by "source" go together, got '
                f"split.by {self.split.by!r} {'with' if has_test else 'without'} a test part"
            )
        if self.split.by == "user" and self.columns.user is None:
            raise ValueError('split.by "user" needs columns.user')
        if self.split.by == "question" and self.columns.question is None:
            raise ValueError('split.by "question" needs columns.question')
        return self


class QuestionSplitConfig(SplitConfig):
    by: Literal["question"] = "question"
    """A question is on one side in every country: its rows share their text."""


class OpinionsConfig(DataSection):
    source: Literal["opinions"]
    """GlobalOpinionQA: survey questions and how each country's people answered them."""

    path: str = "Anthropic/llm_global_opinions"
    """A CSV file (plain or .gz) with the columns question, selections, options and source, or a
    hub data set."""

    cultures: list[str] | None = list(PAPER_CULTURES)
    """Countries, in PRISM's spelling or the survey's ("S. Africa"); the default is the paper's
    seven. null: all, of which some have too few questions."""

    national_only: bool = True
    """Leave out samples that do not stand for a country ("Non-national sample", "Old national
    sample"); false: each is a culture of its own."""

    min_share_gap: float = Field(0.05, ge=0, lt=1)
    """Two options make a pair where their shares are further apart than this."""

    options_as: Literal["texts", "letters"] = "texts"
    """What the model scores: an option's text, or its letter under a lettered list."""

    num_option_orders: int = Field(4, ge=1)
    """With letters: orders in which a question's options are listed, each with another option
    first (as many as it has options at most); the model's shares are the mean over them."""

    split: QuestionSplitConfig = QuestionSplitConfig()
    """How train and test are told apart: by question, the same for all countries."""

    @field_validator("cultures")
    @classmethod
    def countries_have_one_name(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else country_names(value, "cultures")

    @property
    def min_score_gap(self) -> float:
        return self.min_share_gap


class SyntheticConfig(DataSection):
    source: Literal["synthetic"]
    """Generated PRISM-shaped interactions whose best possible accuracy is known."""

    users: dict[str, int] = {"Majority": 120, "North": 40, "South": 40, "East": 40}
    """Culture -> number of users. The first is the majority; the others' tastes leave it."""

    interactions_per_user: int = Field(12, ge=1)
    """Prompts each user answers."""

    responses_per_interaction: int = Field(3, ge=2, le=8)
    """Responses each prompt gets."""

    taste_distance: float = Field(1.0, ge=0, le=2)
    """How far a culture's taste lies from the majority's: 0 the same, 1 unrelated, 2 opposed."""

    person_noise: float = Field(0.3, ge=0)
    """Standard deviation of a person's own noise, in units of taste."""

    outlier_share: float = Field(0.1, ge=0, lt=1)
    """Share of a culture's people whose taste is drawn at random instead."""

    seed: int = Field(0, ge=0)
    """Seed of the generated data."""

    @model_validator(mode="after")
    def has_people(self) -> Self:
        if not self.users or min(self.users.values()) < 1:
            raise ValueError(f"users must name cultures with at least 1 user, got {self.users}")
        return self


class LoraConfig(Section):
    rank: int = Field(16, ge=1)
    """Rank of the adapters."""

    alpha: float = Field(32.0, gt=0)
    """Scale of the adapters: alpha / rank."""

    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapters."""

    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get adapters. The score head is always trained and saved."""


class ModelConfig(Section):
    path: str = "OpenAssistant/reward-model-deberta-v3-base"
    """The global reward model: a folder or a hub model with a sequence-classification head."""

    revision: str | None = None
    """Branch, tag or commit of the hub model."""

    max_length: int = Field(512, ge=8)
    """Tokens per text; what is longer is cut and counted."""

    renderer: Literal["auto", "pair", "chat"] = "auto"
    """How prompt and response become tokens: "pair" as two segments (encoders), "chat" by the
    tokenizer's chat template; "auto": chat where the tokenizer has a template."""

    new_head: bool = False
    """Put a new, seeded score head on a model without one: how a global model is made here."""

    num_layers: int | None = Field(None, ge=1)
    """Keep the bottom layers alone; null keeps all."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""

    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights."""

    inference_batch_tokens: int = Field(16_384, ge=64)
    """Padded tokens per forward pass when scoring and evaluating."""


class SelectionConfig(Section):
    filter_threshold: float | None = Field(0.7, gt=0, le=1)
    """Keep a training pair where the global model's win probability is below it (tau), in the
    methods that filter; null: no filter."""

    weight_temperature: float = Field(1.10, gt=0)
    """Reward units; lower weighs disagreement down more sharply (beta). The inverse ablation
    has none (the paper's formula)."""

    normalize_weights: bool = False
    """Divide a step's loss by the sum of its pairs' weights instead of their number, so that
    weighting does not shrink the step."""


class GroupDroConfig(Section):
    step_size: float = Field(0.01, gt=0)
    """How fast the cultures' weights follow their losses (eta_q in the paper)."""


class SharedOffsetConfig(Section):
    shared_ridge: float = Field(1e-4, gt=0)
    """Penalty on what all cultures share, as half of it times the squared length, in units of the
    loss; pairs' features are scaled to a mean squared length of 1."""

    offset_ridge: float = Field(1e-4, gt=0)
    """The same for what a culture has of its own: higher keeps the cultures closer together."""

    max_iterations: int = Field(1_000, ge=1)
    """Iterations of the solver at most; it ends before where the gradient vanishes."""


class LoreConfig(Section):
    rank: int | None = Field(None, ge=1)
    """Shared heads of which each culture is a mixture, at most as many as there are cultures;
    null: one for every two cultures, at least 2."""

    ridge: float = Field(1e-5, gt=0)
    """Penalty on each shared head's distance from the global model's, as for shared_offset."""

    max_iterations: int = Field(1_000, ge=1)
    """Iterations of the solver at most; it ends before where the gradient vanishes."""


class GpoConfig(Section):
    num_learning_countries: int = Field(5, ge=1)
    """Countries to learn from, drawn by the run's seed; a run's own country is never among them."""

    learning_countries: list[str] | None = Field(None, min_length=1)
    """The countries to learn from, in place of drawn ones."""

    num_context_questions: int = Field(20, ge=1)
    """Training questions whose answers are known of the country that is predicted."""

    num_steps: int = Field(2_000, ge=1)
    """Steps of the predictor; every learning country is in each. The paper makes 200,000."""

    learning_rate: float = Field(3e-4, gt=0)
    """Adam's, falling to zero in a cosine."""

    min_questions: int = Field(10, ge=1)
    """Questions that a learning country shows in a step, and that are asked of it, at least."""

    max_questions: int = Field(100, ge=1)
    """The same at most."""

    @field_validator("learning_countries")
    @classmethod
    def countries_have_one_name(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else country_names(value, "learning_countries")

    @model_validator(mode="after")
    def settings_agree(self) -> Self:
        if self.max_questions < self.min_questions:
            raise ValueError(
                f"max_questions {self.max_questions} must not be below min_questions "
                f"{self.min_questions}"
            )
        return self


class RivalsConfig(Section):
    """Each method reads the section of its own name."""

    group_dro: GroupDroConfig = GroupDroConfig()
    """One model for all cultures, the worst of which counts most."""

    shared_offset: SharedOffsetConfig = SharedOffsetConfig()
    """A score head for all cultures and an offset for each, on frozen features."""

    lore: LoreConfig = LoreConfig()
    """A few shared score heads, mixed for each culture, on frozen features."""

    gpo: GpoConfig = GpoConfig()
    """A country's answer shares, predicted from its answers to a few questions."""


class TrainConfig(Section):
    batch_size: int = Field(8, ge=1)
    """Pairs per optimizer step, over all workers."""

    micro_batch_tokens: int = Field(8_192, ge=64)
    """Padded tokens per forward pass on one worker: the number to lower when memory runs out."""

    max_steps: int = Field(1_024, ge=1)
    """Optimizer steps, whatever the number of pairs (the paper's way of ending)."""

    learning_rate: float = Field(1e-6, gt=0)
    """AdamW's highest learning rate."""

    schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls to zero after the warm-up."""

    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from zero."""

    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decoupled weight decay."""

    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient's norm is clipped to it."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast around the forward pass; weights and optimizer stay in float32."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""

    dropout: bool = True
    """The model's own dropout while training; false turns it off."""

    checkpoint_every: int = Field(200, ge=1)
    """Steps between checkpoints, from which a stopped run resumes."""

    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints stay on disk."""

    log_every: int = Field(10, ge=1)
    """Steps between points of the training curve."""

    num_workers: int | tuple[int, int] = 1
    """Processes that share each step. [min, max]: as many as there is room for; the run goes on
    with fewer when a machine is lost (on Ray)."""

    engine: Literal["torch", "deepspeed"] = "torch"
    """torch: every worker holds the whole model and optimizer. deepspeed: see `zero_stage`."""

    zero_stage: int = Field(0, ge=0, le=3)
    """What DeepSpeed divides among the workers: 0 nothing, 1 the optimizer's state, 2 the
    gradients too, 3 the weights too."""

    offload_optimizer: bool = False
    """Keep the optimizer's state in the CPU's memory (DeepSpeed, stages 1 to 3)."""

    deepspeed_config: Path | None = None
    """Your own DeepSpeed JSON, for what has no setting here; it cannot contradict these."""

    @field_validator("num_workers", mode="before")
    @classmethod
    def num_workers_is_a_number_or_two(cls, value: Any) -> Any:
        parts = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
        if not all(isinstance(part, int) and not isinstance(part, bool) for part in parts):
            raise ValueError(f"must be a whole number or [min, max], got {value!r}")
        return value

    @model_validator(mode="after")
    def there_are_workers(self) -> Self:
        if self.min_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {self.min_workers}")
        if self.min_workers > self.max_workers:
            raise ValueError(f"num_workers [min, max] must rise, got {list(self.worker_range)}")
        if self.max_workers > self.batch_size:
            raise ValueError(
                f"num_workers {self.max_workers} must not exceed batch_size {self.batch_size}: "
                "a worker without a pair has nothing to do"
            )
        return self

    @model_validator(mode="after")
    def engine_has_what_is_asked_of_it(self) -> Self:
        if self.engine == "torch":
            for name in ("zero_stage", "offload_optimizer", "deepspeed_config"):
                if getattr(self, name):
                    raise ValueError(f'{name} needs engine "deepspeed", got engine "torch"')
        if self.offload_optimizer and not self.zero_stage:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3, got 0")
        return self

    @property
    def engine_name(self) -> str:
        return f"deepspeed ZeRO {self.zero_stage}" if self.engine == "deepspeed" else self.engine

    @property
    def worker_range(self) -> tuple[int, int]:
        if isinstance(self.num_workers, int):
            return self.num_workers, self.num_workers
        return self.num_workers

    @property
    def min_workers(self) -> int:
        return self.worker_range[0]

    @property
    def max_workers(self) -> int:
        return self.worker_range[1]

    @model_validator(mode="after")
    def warmup_ends_before_training_does(self) -> Self:
        if self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} must be below max_steps {self.max_steps}"
            )
        return self


class LaunchConfig(Section):
    on: Literal["auto", "process", "ray"] = "auto"
    """Where the workers run: in this process, or started by Ray; auto: Ray where there is more
    than one, or where a Ray cluster is named (`address`, or RAY_ADDRESS as in a Ray job)."""

    address: str | None = None
    """The Ray cluster, "auto" for the one this machine belongs to; null: the one RAY_ADDRESS
    names, or else a Ray of this command's own on this machine."""

    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs that each worker reserves; a fraction lets more workers share a core."""

    gpus_per_worker: float | None = Field(None, ge=0)
    """GPUs that each worker reserves, a fraction for small models; null: one where the cluster
    has GPUs and `device` is not cpu."""

    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Workers on as few machines as possible, or on as many; STRICT: or not at all."""

    storage: str | None = None
    """Where workers on machines without a common folder meet: a URI (s3://, gs://, file://, any
    that fsspec knows). Checkpoints and finished runs go there and are taken up from there."""

    max_failures: int = Field(3, ge=0)
    """How often a run starts again from its checkpoint after a worker or a machine is lost."""

    wait_for_resources: bool = False
    """Wait, for an autoscaler to add machines, instead of refusing what the cluster cannot hold."""

    score_on_ray_above: int = Field(200_000, ge=0)
    """Texts above which a run on Ray has the global model's scores computed by all machines."""

    @field_validator("storage")
    @classmethod
    def storage_is_a_uri(cls, value: str | None) -> str | None:
        if value is not None and "://" not in value:
            raise ValueError(
                f"must be a URI such as s3://bucket/runs or file:///mnt/runs, got {value!r}"
            )
        return value


class EvaluationConfig(Section):
    distinctive_threshold: float = Field(0.5, gt=0, le=1)
    """A test pair is distinctive where the global model's win probability is below it."""

    bootstrap_samples: int = Field(2_000, ge=100)
    """Resamples of the users (or questions) behind each interval."""

    num_examples: int = Field(4, ge=0)
    """Pairs shown as text per culture and kind (kept, dropped, down-weighted)."""


class TrackingConfig(Section):
    tracker: Literal["mlflow", "jsonl", "none"] = "mlflow"
    """Where metrics and models go besides the run folder."""

    uri: str | None = None
    """MLflow tracking URI; null: a SQLite file, mlflow.db, in `output_dir`."""

    log_model: bool = True
    """Log the trained model to MLflow and register it as scpo-<culture>."""


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


class SpaceConfig(Section):
    method: list[MethodName] = list(OWN_METHODS)
    """Methods to compare; those but "global" are trained. pooled and group_dro are trained once for
    all cultures of the data."""

    culture: list[str] | None = None
    """One model per culture; null: the cultures of `run.data.cultures`."""

    seed: list[Annotated[int, Field(ge=0)]] = [0]
    """Each method and culture is run with each seed."""

    @model_validator(mode="after")
    def values_are_named_once(self) -> Self:
        for name in ("method", "culture", "seed"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ValueError(f"{name} must name each value once, got {values}")
        return self


class ComparisonConfig(Section):
    """A file with `run:` and `space:`: the same run for each method, culture and seed."""

    run: RunConfig
    """A whole run."""

    space: SpaceConfig = SpaceConfig()
    """What varies."""

    @model_validator(mode="before")
    @classmethod
    def countries_have_one_name(cls, document: Any) -> Any:
        run, space = (document.get("run"), document.get("space"))
        if isinstance(run, dict) and isinstance(space, dict) and is_opinions(run):
            cultures = space.get("culture")
            if isinstance(cultures, list):
                named = country_names(cultures, "space.culture")
                return document | {"space": space | {"culture": named}}
        return document

    @model_validator(mode="after")
    def methods_fit_the_model(self) -> Self:
        for method in self.space.method:
            _check_method(method, self.run)
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "method": "scpo",
        "seed": 0,
        "data": {"source": "prism", "cultures": list(PAPER_CULTURES), "history": False},
        "model": {"path": "OpenAssistant/reward-model-deberta-v3-base", "max_length": 512},
        "selection": {"filter_threshold": 0.7, "weight_temperature": 1.10},
        "train": {
            "batch_size": 8,
            "max_steps": 1_024,
            "learning_rate": 1e-6,
            "schedule": "linear",
            "warmup_steps": 0,
            "max_grad_norm": 1.0,
        },
        "evaluation": {"distinctive_threshold": 0.5},
    }
}
