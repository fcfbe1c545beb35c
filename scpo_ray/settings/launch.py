"""Where the workers run, and what they reserve."""

import re
from typing import Literal
from urllib.parse import quote

from pydantic import Field, field_validator

from scpo_ray.settings.section import Section
from scpo_ray.settings.shown import password_fault


class LaunchConfig(Section):
    on: Literal["auto", "process", "ray"] = "auto"
    """Where the workers run: in this process, or started by Ray; auto: Ray where there is more
    than one, or where a Ray cluster is named (`address`, or RAY_ADDRESS as in a Ray job)."""

    address: str | None = None
    """The Ray cluster, "auto" for the one this machine belongs to; null: the one RAY_ADDRESS
    names, or else a Ray of this command's own on this machine."""

    cpus_per_worker: float = Field(1.0, gt=0, le=100_000)
    """CPUs that each worker reserves; a fraction lets more workers share a core."""

    gpus_per_worker: float | None = Field(None, ge=0, le=100_000)
    """GPUs that each worker reserves, a fraction for small models; null: one where the cluster
    has GPUs and `device` is not cpu."""

    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Workers on as few machines as possible, or on as many; STRICT: or not at all."""

    storage: str | None = None
    """Where workers on machines without a common folder meet: a URI (s3://, gs://, file://, any
    that fsspec knows), without a password. Checkpoints and finished runs go there and are taken up
    from there. Options of a bucket's stand behind a ?, as in s3://bucket/runs?region=eu-north-1."""

    max_failures: int = Field(3, ge=0, le=1_000_000)
    """How often a run starts again from its checkpoint after a worker or a machine is lost."""

    wait_for_resources: bool = False
    """Wait, for an autoscaler to add machines, instead of refusing what the cluster cannot hold."""

    score_on_ray_above: int = Field(200_000, ge=0)
    """Texts above which a run on Ray has the global model's scores computed by all machines."""

    @field_validator("storage")
    @classmethod
    def storage_is_a_uri(cls, value: str | None) -> str | None:
        if value is None:
            return None
        fault = password_fault(value, is_uri=True)
        if fault is not None:
            raise ValueError(fault)
        scheme, separator, rest = value.partition("://")
        if not separator or not rest.strip("/"):
            raise ValueError(
                f"must be a URI such as s3://bucket/runs or file:///mnt/runs, got {value!r}"
            )
        if "\0" in value or "#" in value or (scheme.lower() == "file" and "?" in rest):
            raise ValueError(f"must have %23 for # and, in a path, %3F for ?, got {value!r}")
        if rest.startswith(("~", "/~")):
            raise ValueError(
                f"~ is not read as your home here: write the whole path, got {value!r}"
            )
        # Blanks, letters of any language and a lone % are escaped for those that cannot read them.
        rest = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", rest)
        return f"{scheme}://{quote(rest, safe='/%?=&:@+-_.~!$()*,;[]')}"
