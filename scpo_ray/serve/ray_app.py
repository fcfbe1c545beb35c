"""The same routes as an application of Ray Serve: several machines, replicas, autoscaling.

    serve run scpo_ray.serve.ray_app:app models="Chile=scpo-Chile@champion Mexico=runs/mexico"

The token comes from SCPO_TOKEN in the replicas' environment. Models in folders must be readable
under the same path on every machine; registered ones come from their store.
"""

import os
import shlex

from fastapi import FastAPI
from pydantic import Field
from ray import serve
from ray.serve import Application

from scpo_ray.records import InputError
from scpo_ray.serve.app import make_app
from scpo_ray.serve.champions import culture_source
from scpo_ray.serve.choices import read_models
from scpo_ray.serve.measures import Measures
from scpo_ray.serve.service import Service
from scpo_ray.settings.section import Section
from scpo_ray.settings.serve import ServeConfig

TOKEN_VARIABLE = "SCPO_TOKEN"


class AppArguments(Section):
    """What `serve run` and a Serve config file may say."""

    models: str
    """CULTURE=MODEL, or CULTURE=MODEL,MODEL, for each culture, with blanks between."""

    base: str | None = None
    """The base model of adapters, where it is not where their folders say."""

    tracking_uri: str | None = None
    """The MLflow store of registered models."""

    device: str = "cpu"
    """A replica's torch device; "cuda" needs `num_gpus`."""

    num_cpus: float = Field(1.0, ge=0)
    """CPUs that a replica reserves."""

    num_gpus: float = Field(0.0, ge=0)
    """GPUs that a replica reserves; a fraction lets several share one."""

    min_replicas: int = Field(1, ge=1)
    """Replicas there always are."""

    max_replicas: int = Field(1, ge=1)
    """Replicas there may be under load."""

    server: ServeConfig = ServeConfig()
    """As `scpo serve --set`."""


def app(arguments: AppArguments) -> Application:
    """The application, to be run by `serve run`, a Serve config file or `ray.serve.run`."""

    def build() -> FastAPI:
        """In a replica: its own models, batcher and numbers."""
        token = os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            raise InputError(f"{TOKEN_VARIABLE} must be set in the environment of the replicas")
        config = arguments.server
        models = read_models(shlex.split(arguments.models))
        source = culture_source(
            models, arguments.base, arguments.tracking_uri, config, arguments.device
        )
        return make_app(Service(source, config, Measures()), token=token)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name="scpo-rewards",
        # Enough at once to make batches of; beyond it Serve's own queue holds requests.
        max_ongoing_requests=256,
        ray_actor_options={"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus},
        autoscaling_config={
            "min_replicas": arguments.min_replicas,
            "max_replicas": max(arguments.min_replicas, arguments.max_replicas),
            "target_ongoing_requests": 32,
        },
        graceful_shutdown_timeout_s=arguments.server.shutdown_timeout_s,
    )
    bound: Application = deployment.bind()
    return bound
