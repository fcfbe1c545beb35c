"""The global reward model, and how it is changed."""

from typing import Literal

from pydantic import Field

from scpo_ray.settings.section import Section, TokenBudget


class LoraConfig(Section):
    rank: int = Field(16, ge=1, le=100_000)
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

    convert_pickle: bool = False
    """Read weights that are there as pickles alone, once, into safetensors in the cache. Tensors
    are all that is read: no code in them runs."""

    max_length: int = Field(512, ge=8, le=1_000_000)
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

    dtype: Literal["auto", "float32", "bfloat16", "nf4"] = "auto"
    """What the weights are kept in and computed with; weights that are trained are optimised in
    float32, and the score head computes in it. auto: bfloat16 for a base under LoRA on a GPU that
    has it, else float32. nf4: the linear layers of a base under LoRA in 4 bits (bitsandbytes),
    computed in bfloat16 as the rest."""

    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"] = "auto"
    """Who computes attention, among those that the model and this machine have; auto: the
    model's own choice. It changes rounding alone."""

    inference_batch_tokens: TokenBudget = "auto"
    """Tokens per forward pass when scoring and evaluating, padded ones counted. auto: 2048 on a
    CPU, 16384 on a GPU."""

    def batch_tokens(self, device: str) -> int:
        """Tokens of one forward pass without gradient on such a device."""
        if self.inference_batch_tokens != "auto":
            return self.inference_batch_tokens
        return 16_384 if device.startswith("cuda") else 2_048
