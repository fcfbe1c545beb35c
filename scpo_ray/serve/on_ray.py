"""The rewards of a file's parts by all machines of a Ray cluster, on Ray Data."""

import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.data

from scpo_ray.launch.ray_cluster import Resources, join, room_for, stand_where
from scpo_ray.records import InputError
from scpo_ray.serve.core import CultureRewards
from scpo_ray.serve.files import Gained, scored_here
from scpo_ray.serve.rows import Asks


def scored_on_ray(
    files: Sequence[Path],
    asks: Asks,
    models: Mapping[str, Sequence[str]],
    options: Mapping[str, Any],
) -> Iterator[tuple[int, Gained]]:
    """A `ScoreParts`; the parts and the models must lie where every machine finds them.

    Args:
        models, options: as of `CultureRewards.load`.

    Raises: InputError if there is no cluster to join, or a machine cannot use the models.
    """
    if not files:
        return
    join(None)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # What it has to say of a failure comes as an exception as well.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    on_gpu = options.get("device") is None and ray.cluster_resources().get("GPU", 0) > 0
    each = Resources(1.0, float(on_gpu))
    rows = [{"place": place, "file": str(f.absolute())} for place, f in enumerate(files)]
    scored = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Scorer,
        fn_constructor_kwargs={
            "asks": asks,
            "models": dict(models),
            "options": dict(options),
            "working_dir": os.getcwd(),
        },
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(len(rows), room_for(each))),
        num_cpus=each.cpus,
        num_gpus=each.gpus,
    )
    for row in scored.iter_rows():
        if row["fault"]:
            raise InputError(*json.loads(row["fault"]))
        yield int(row["place"]), json.loads(row["gained"])


class _Scorer:
    """One of the workers. A fault of the input is an answer like any other: an exception Ray would
    print, each time with all of its own stack."""

    def __init__(
        self,
        asks: Asks,
        models: dict[str, Sequence[str]],
        options: dict[str, Any],
        working_dir: str,
    ) -> None:
        logging.getLogger("scpo_ray").setLevel(logging.ERROR)
        stand_where(working_dir)
        self._asks, self._fault = asks, ""
        try:
            self._rewards = CultureRewards.load(models, **options)
        except InputError as error:
            self._fault = _told(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        fault, gained = self._fault, Gained()
        if not fault:
            try:
                ((_, gained),) = scored_here([Path(batch["file"][0])], self._asks, self._rewards)
            except InputError as error:
                fault = _told(error)
        return {"place": batch["place"], "gained": [json.dumps(gained)], "fault": [fault]}


def _told(error: InputError) -> str:
    return json.dumps([f"{platform.node()}: {error.title}", error.problems])
