"""The global model's rewards of large data, computed by all machines of a Ray cluster."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from scpo_ray.config import RunConfig
from scpo_ray.experiment import RunInputs, load_inputs, open_run_dir
from scpo_ray.launch.ray_cluster import Resources, check_resources, connect, room_for
from scpo_ray.launch.relay import first_error, relayed_to_here
from scpo_ray.records import InputError
from scpo_ray.scoring import check_finite, load_frozen_model, score_tokens
from scpo_ray.storage import ScorePart

log = logging.getLogger(__name__)


def score_on_ray(config: RunConfig, inputs: RunInputs) -> None:
    """Fills the score store with what it lacks; a stopped scoring goes on with the rest.

    Each part is computed by one worker, with the same batches as in one process (so the same
    values, to the bit on a CPU), and written here as it comes.

    Raises: InputError if the model or the data cannot be used on a machine of the cluster, or a
    reward is not finite.
    """
    run_dir = open_run_dir(config)
    key, hashes = inputs.fingerprints["scores"], inputs.data.texts.hashes
    missing = {part.number: part for part in run_dir.score_store.missing_parts(key, hashes)}
    if not missing:
        log.info("scores: %d texts read from %s", len(hashes), run_dir.score_store.path(key))
        return
    connect(config)
    each = check_resources(config)
    with relayed_to_here() as relay:
        rewards = _dataset(config, inputs, each, list(missing.values()), relay)
        try:
            for done, row in enumerate(rewards.iter_rows(), start=1):
                part = missing[int(row["number"])]
                values = np.asarray(row["rewards"], dtype=np.float32)
                check_finite(values, config.model)
                run_dir.score_store.put(key, part, hashes, values)
                if done * 10 // len(missing) > (done - 1) * 10 // len(missing):
                    log.info("scores: %d of %d parts", done, len(missing))
        except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
            told = first_error(relay)
            if told is None:
                raise
            raise told from error
    log.info("scores: %d texts computed, kept in %s", len(hashes), run_dir.score_store.path(key))


def _dataset(
    config: RunConfig,
    inputs: RunInputs,
    each: Resources,
    parts: list[ScorePart],
    relay: Any,
) -> Any:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [
        {"number": part.number, "start": part.ids[0], "stop": part.ids[-1] + 1} for part in parts
    ]
    return ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Scorer,
        fn_constructor_kwargs={
            "config": config.model_dump_json(),
            "fingerprints": inputs.fingerprints,
            "working_dir": os.getcwd(),
            "device": "cuda" if each.gpus else "cpu",
            "relay": relay,
        },
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(len(parts), room_for(each))),
        num_cpus=each.cpus,
        num_gpus=each.gpus,
    )


class _Scorer:
    """One of the workers: the data and the model are read once."""

    def __init__(
        self,
        config: str,
        fingerprints: dict[str, str],
        working_dir: str,
        device: str,
        relay: Any,
    ) -> None:
        settings = RunConfig.model_validate_json(config)
        if Path(working_dir).is_dir():
            os.chdir(working_dir)
        logging.getLogger("scpo_ray").setLevel(logging.ERROR)
        try:
            inputs = load_inputs(settings, open_run_dir(settings))
            changed = [
                f"{name} fingerprint here {inputs.fingerprints[name]}, there {value}"
                for name, value in fingerprints.items()
                if inputs.fingerprints[name] != value
            ]
            if changed:
                raise InputError(f"{os.uname().nodename}: other data or model files", changed)
            self._model = load_frozen_model(
                inputs.model_dir, settings.model, inputs.renderer, device=device
            )
        except InputError as error:
            ray.get(relay.fail.remote(0, error.title, error.problems))
            raise
        self._tokens = inputs.tokens

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
        ids = np.arange(int(batch["start"][0]), int(batch["stop"][0]))
        rewards = score_tokens(self._model, self._tokens, text_ids=ids)
        return {"number": batch["number"], "rewards": [rewards]}
