"""The optimisation, and who computes it."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from scpo_ray.settings.section import Section, TokenBudget

Precision = Literal["fp32", "bf16"]


class TrainConfig(Section):
    batch_size: int = Field(8, ge=1, le=1_000_000)
    """Pairs per optimizer step, over all workers."""

    micro_batch_tokens: TokenBudget = "auto"
    """Tokens per forward pass on one worker, padded ones counted: the number to lower when memory
    runs out. auto: 2048 on a CPU, 8192 on a GPU, and at least the longest pair."""

    draw: Literal["pairs", "interactions"] = "pairs"
    """What is drawn into steps: single pairs, as in the paper, or all pairs of an interaction one
    after the other, so that a response in several pairs is mostly computed once. Both are the same
    where an interaction has one pair, as in a file of chosen and rejected responses."""

    soft_labels: bool = False
    """Learn by how much `chosen` is preferred: the share of people who preferred it to `rejected`
    is the pair's target, in place of 1. Needs data that counts people: `columns.chosen_share` or
    `chosen_votes` of preferences, or opinions."""

    max_steps: int = Field(1_024, ge=1, le=10**7)
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

    precision: Precision = "fp32"
    """bf16: autocast around the backbone, in training, scoring and evaluation; weights, score head,
    margins and optimizer stay in float32."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""

    dropout: bool = True
    """The model's own dropout while training; false turns it off."""

    checkpoint_every: int = Field(200, ge=1, le=10**9)
    """Steps between checkpoints, from which a stopped run resumes."""

    keep_checkpoints: int = Field(2, ge=1, le=10**9)
    """How many of the newest checkpoints stay on disk."""

    log_every: int = Field(10, ge=1, le=10**9)
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

    def pass_tokens(self, device: str, longest_pair: int) -> int:
        """Tokens of one forward pass on such a device.

        A rule, not a measurement: who resumes a run elsewhere must divide its steps alike.
        docs/performance.md has what it rests on.
        """
        if self.micro_batch_tokens != "auto":
            return self.micro_batch_tokens
        return max(8_192 if device.startswith("cuda") else 2_048, longest_pair)

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
