"""The global model's rewards of large data, computed by all machines of a Ray cluster."""

import json
import logging
import os
import platform
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from numpy.typing import NDArray

from scpo_ray.experiment import RunInputs, load_inputs
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.ray_cluster import Resources, check_resources, connect, room_for, stand_where
from scpo_ray.launch.relay import relayed_to_here
from scpo_ray.models.global_model import check_finite, log_scored
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.models.scoring import score_tokens
from scpo_ray.records import InputError, Tokens, Worker
from scpo_ray.settings.run import RunConfig

log = logging.getLogger(__name__)


def score_on_ray(config: RunConfig, inputs: RunInputs) -> None:
    """Fills the score store with what it lacks; a stopped scoring goes on with the rest.

    Each part is computed by one worker, with the same batches as in one process (so the same
    values, to the bit on a CPU with as many threads), and written here as it comes.

    Raises: InputError if the model or the data cannot be used on a machine of the cluster, a
    reward is not finite, or workers are lost more than `launch.max_failures` times.
    """
    model, texts = inputs.global_model, inputs.data.texts
    store, key = model.stores.scores, model.score_key
    missing = model.unscored(texts)
    if not missing:
        log_scored(store, key, 0, len(texts))
        return
    connect(config)
    # Room for one is enough: any number of workers can share the parts.
    one = config.train.model_copy(update={"num_workers": 1})
    each = check_resources(config.model_copy(update={"train": one}))
    with relayed_to_here() as relay:
        rows = _dataset(config, inputs, each, missing, relay).iter_rows()
        for done, row in enumerate(rows, start=1):
            if row["fault"]:
                raise InputError(*json.loads(row["fault"]))
            ids = missing[int(row["number"])]
            rewards = np.asarray(row["rewards"], dtype=np.float32)
            check_finite(rewards, config.model)
            store.put(key, texts.hashes[ids], rewards)
            if done * 10 // len(missing) > (done - 1) * 10 // len(missing):
                log.info("scores: %d of %d parts", done, len(missing))
    log_scored(store, key, sum(map(len, missing)), len(texts))


def _dataset(
    config: RunConfig,
    inputs: RunInputs,
    each: Resources,
    parts: list[NDArray[np.int64]],
    relay: Any,
) -> Any:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # What it has to say of a failure comes as an exception as well.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    rows = [{"number": number, "ids": ids} for number, ids in enumerate(parts)]
    num_workers = min(len(parts), room_for(each))
    return ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Scorer,
        fn_constructor_kwargs={
            "config": config.model_dump_json(),
            "fingerprints": inputs.fingerprints,
            "working_dir": os.getcwd(),
            "device": "cuda" if each.gpus else "cpu",
            "relay": relay,
            "max_starts": num_workers + config.launch.max_failures,
        },
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=num_workers),
        num_cpus=each.cpus,
        num_gpus=each.gpus,
    )


class _Scorer:
    """One of the workers: the data and the model are read once.

    A fault of the input is an answer like any other: an exception Ray would print, each time with
    all of its own stack.
    """

    def __init__(
        self,
        config: str,
        fingerprints: dict[str, str],
        working_dir: str,
        device: str,
        relay: Any,
        max_starts: int,
    ) -> None:
        settings = RunConfig.model_validate_json(config)
        stand_where(working_dir)
        logging.getLogger("scpo_ray").setLevel(logging.ERROR)
        self._fault = ""
        self._settings = settings
        try:
            # Ray starts for ever again what is killed, for want of memory, say.
            if ray.get(relay.start.remote()) > max_starts:
                raise InputError(
                    "workers were lost more often than launch.max_failures = "
                    f"{settings.launch.max_failures}",
                    ["the same command goes on with the missing parts"],
                )
            self._model, self._tokens = _read(settings, fingerprints, device)
        except InputError as error:
            self._fault = _told(error)
        except torch.OutOfMemoryError:
            self._fault = _told(_out_of_memory(settings))

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
        fault, rewards = self._fault, np.empty(0, np.float32)
        if not fault:
            try:
                rewards = score_tokens(self._model, self._tokens, text_ids=batch["ids"][0])
            except torch.OutOfMemoryError:
                fault = _told(_out_of_memory(self._settings))
        return {"number": batch["number"], "rewards": [rewards], "fault": [fault]}


def _read(
    config: RunConfig, fingerprints: dict[str, str], device: str
) -> tuple[RewardModel, Tokens]:
    """Model and tokens as this machine has them. Raises: InputError if they are not the same."""
    inputs = load_inputs(config, open_run_dir(config))
    changed = [
        f"{name} fingerprint {inputs.fingerprints[name][:12]}, not {value[:12]}"
        for name, value in fingerprints.items()
        if inputs.fingerprints[name] != value
    ]
    if changed:
        raise InputError("other data or model files than where the command was given", changed)
    here = Worker(rank=0, world_size=1, device=device)
    return inputs.global_model.on(here).frozen(), inputs.tokens


def _out_of_memory(config: RunConfig) -> InputError:
    return InputError(
        "the GPU's memory is used up",
        [
            f"lower model.inference_batch_tokens = {config.model.batch_tokens('cuda')}",
            "or have each worker reserve more of a GPU (launch.gpus_per_worker)",
        ],
    )


def _told(error: InputError) -> str:
    return json.dumps([f"{platform.node()}: {error.title}", error.problems])
