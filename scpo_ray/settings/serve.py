"""What the reward server takes at once, and how long it waits."""

from typing import Literal

from pydantic import Field

from scpo_ray.settings.section import Section


class ServeConfig(Section):
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What weights are kept in."""

    max_loaded: int = Field(8, ge=1, le=10_000)
    """Networks in memory at once, those used last; adapters on one base model are one network."""

    batch_tokens: int | None = Field(None, ge=64, le=100_000_000)
    """Tokens per forward pass: the number to lower when memory runs out; null: as a run's."""

    gather_ms: float = Field(3.0, ge=0, le=1_000)
    """Milliseconds, at most, for which requests wait until as many wait as the batch before had."""

    batch_items: int = Field(256, ge=1, le=1_000_000)
    """Items after which a batch waits for no more."""

    max_items: int = Field(1_024, ge=1, le=1_000_000)
    """Items of one request; more are refused (413)."""

    max_waiting_items: int = Field(4_096, ge=1, le=100_000_000)
    """Items taken and not scored yet, of all requests; beyond them new ones get 429."""

    max_body_bytes: int = Field(8 * 2**20, ge=1_024, le=2**30)
    """Bytes of a request's body; larger ones are refused (413)."""

    max_characters: int = Field(200_000, ge=1, le=100_000_000)
    """Characters of one item, prompt, history and response together; longer ones are refused."""

    receive_timeout_s: float = Field(10.0, gt=0, le=3_600)
    """Seconds in which a request's head, and then its body, must have come (408)."""

    max_connections: int = Field(1_024, ge=1, le=1_000_000)
    """Connections open at once; more get 503."""

    shutdown_timeout_s: int = Field(30, ge=1, le=3_600)
    """Seconds for what was taken to be answered, once the server is told to stop."""

    watch_s: float = Field(30.0, gt=0, le=86_400)
    """Seconds between two looks at whether a registered model's alias has moved."""
