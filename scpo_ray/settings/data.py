"""Where preferences come from, and how they are divided."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from scpo_ray.settings.countries import country_names
from scpo_ray.settings.section import Section

PAPER_CULTURES = (
    "Chile",
    "South Africa",
    "New Zealand",
    "Australia",
    "Mexico",
    "Israel",
    "Canada",
)


MAX_GENERATED = 10_000_000
"""Responses of a generated data set: more are no test but a mistake, and fill the memory."""


class SplitConfig(Section):
    by: Literal["user", "question", "source"] = "user"
    """What is kept on one side: a user, a question, or as the source says (its test files)."""

    test_size: float = Field(0.15, gt=0, lt=1)
    """Share of the users (or questions) held out, over the whole data in file order."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the split alone; 0 with 0.15 by user gives the paper's test sets on PRISM."""

    num_folds: int | None = Field(None, ge=2, le=1_000)
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

    num_option_orders: int = Field(4, ge=1, le=1_000)
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

    interactions_per_user: int = Field(12, ge=1, le=10_000)
    """Prompts each user answers."""

    responses_per_interaction: int = Field(3, ge=2, le=8)
    """Responses each prompt gets."""

    taste_distance: float = Field(1.0, ge=0, le=2)
    """How far a culture's taste lies from the majority's: 0 the same, 1 unrelated, 2 opposed."""

    person_noise: float = Field(0.3, ge=0, le=1_000)
    """Standard deviation of a person's own noise, in units of taste."""

    outlier_share: float = Field(0.1, ge=0, lt=1)
    """Share of a culture's people whose taste is drawn at random instead."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the generated data."""

    @model_validator(mode="after")
    def has_people(self) -> Self:
        if not self.users or min(self.users.values()) < 1:
            raise ValueError(f"users must name cultures with at least 1 user, got {self.users}")
        num = sum(self.users.values()) * self.interactions_per_user * self.responses_per_interaction
        if num > MAX_GENERATED:
            raise ValueError(
                f"{num:,} responses (users x interactions x responses): at most {MAX_GENERATED:,}"
            )
        return self
