"""How many pairs a method needs: the sweep that answers it, from a run's file."""

from collections.abc import Sequence
from pathlib import Path

from scpo_ray.experiment import load_inputs
from scpo_ray.inputs import open_run_dir
from scpo_ray.records import InputError
from scpo_ray.settings.documents import write_yaml
from scpo_ray.settings.files import holds_a_space, load_config, load_sweep
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.sweep import CULTURE, Grid
from scpo_ray.storage.disk import whole_file
from scpo_ray.sweep.efficiency import FRACTION
from scpo_ray.sweep.records import SweepResult

EFFICIENCY_FRACTIONS = (0.125, 0.25, 0.5, 0.75, 1.0)


def efficiency(path: Path | str, overrides: Sequence[str]) -> tuple[SweepResult, Path, Path]:
    """A sweep over the share of training users, to its end: result, its folder, and its file.

    Args:
        path: a sweep file with an axis `data.data_fraction`, or a run's: then scpo and finetune
            are compared on `EFFICIENCY_FRACTIONS` of its cultures' users with three seeds, by a
            sweep file that is written to the run's experiment folder.

    Raises: InputError if the sweep has no such axis with two values; else as `run_sweep`.
    """
    # Ray takes seconds to load, and no other command here needs it.
    from scpo_ray.launch.sweeps import run_sweep

    if holds_a_space(path):
        file = Path(path)
        axis = load_sweep(file, overrides).space.get(FRACTION)
        if not isinstance(axis, Grid) or len(axis.grid) < 2:
            rule = f"space.{FRACTION}: must be a grid of two values or more"
            raise InputError(f"{file}: no curve to draw", [rule])
    else:
        file, overrides = efficiency_file(load_config(path, overrides)), []
    return *run_sweep(file, overrides), file


def efficiency_file(config: RunConfig) -> Path:
    """Writes the sweep that `efficiency` runs for a run's file; the same run, the same sweep.

    The cultures are those that the run trains for, or else all that its data has. Nothing is chosen
    there: all users but those tested are trained on.
    """
    cultures = [culture for culture, weight in (config.culture_weights or {}).items() if weight > 0]
    if not cultures:
        data = config.data
        cultures = data.cultures or list(load_inputs(config, open_run_dir(config)).data.cultures)
    run = config.model_dump(mode="json", exclude_unset=True)
    for varied in ("method", "seed", "culture_weights"):
        run.pop(varied, None)
    num_workers = run.get("train", {}).pop("num_workers", 1)
    of_data = {"source": config.data.source, **run.get("data", {})}
    of_data.pop("data_fraction", None)
    run["data"] = of_data | {"split": {**of_data.get("split", {}), "dev_size": 0.0}}
    document = {
        "run": run,
        "space": {
            CULTURE: {"grid": cultures},
            "method": {"grid": ["finetune", "scpo"]},
            FRACTION: {"grid": list(EFFICIENCY_FRACTIONS)},
        },
        "repeat": {"seeds": [config.seed + place for place in range(3)]},
        "resources": {"workers": num_workers},
    }
    folder = config.output_dir / config.experiment
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "efficiency.yaml"
    question = "# How many training pairs does scpo need to match finetune on all of them?\n\n"
    with whole_file(file) as part:
        part.write_text(question + write_yaml(document), encoding="utf-8")
    return file
