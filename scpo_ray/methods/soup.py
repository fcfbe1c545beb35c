"""Model soup: the plain mean of several trained models' weights, which costs no training.

Of the same culture with other seeds, or of several cultures.

Source: Wortsman et al., Model soups (ICML 2022, arXiv 2203.05482); docs/method.md.
"""

import glob
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from scpo_ray.methods.ways import select_every_pair
from scpo_ray.records import InputError
from scpo_ray.settings.methods import Method, Style
from scpo_ray.settings.naming import safe_name
from scpo_ray.settings.section import Section


class Settings(Section):
    models: list[str] = Field([], max_length=1_000)
    """Folders of ended runs (or exported models), with * and {culture}, the run's culture as runs'
    names have it: runs/x/finetune-{culture}-s* is a soup of seeds, runs/x/finetune-*-s0-* one of
    cultures. Two at least; the folders' weights at the time of the run are taken. Runs that have
    not held out what this one tests and chooses on are refused."""


def check_settings(config: Any) -> None:
    """Raises: ValueError if no model is named."""
    if not config.own_settings.models:
        raise ValueError("method 'soup' averages trained models: name them in methods.soup.models")


def check(task: Any) -> None:
    """Raises: InputError as `model_folders`, and naming each model that may have learned from
    pairs on which the soup is tested or chosen."""
    from scpo_ray.evaluation.held_out import not_held_out, run_of_model

    folders = model_folders(task.settings.models, task.trained_cultures)
    runs = {folder: run for folder in folders if (run := run_of_model(folder)) is not None}
    found = not_held_out([*runs.values()], task.data, task.config.data)
    problems = [
        f"{folder.parent}: {said}" for folder, said in zip(runs, found, strict=True) if said
    ]
    if problems:
        raise InputError("methods.soup.models: may know what this run is judged on", problems)


def model_folders(patterns: list[str], cultures: list[str]) -> list[Path]:
    """The model folders that the patterns name, each once, in order.

    Raises: InputError for a pattern that names none, one with {culture} where there are several,
        and fewer than two models in all.
    """
    found: list[Path] = []
    for pattern in patterns:
        if "{culture}" in pattern and len(cultures) != 1:
            raise InputError(
                f"methods.soup.models: {pattern}: {{culture}} needs one, got {cultures}"
            )
        named = pattern.replace("{culture}", glob.escape(safe_name(cultures[0])))
        folders = [Path(name) for name in sorted(glob.glob(named)) if Path(name).is_dir()]
        folders = [f / "model" if (f / "model").is_dir() else f for f in folders]
        whole = [f for f in folders if (f / "config.json").is_file()]
        whole += [f for f in folders if (f / "adapter_config.json").is_file() and f not in whole]
        if not whole:
            raise InputError(f"methods.soup.models: {named}: there is no ended run or model")
        found += whole
    found = list(dict.fromkeys(found))
    if len(found) < 2:
        raise InputError(f"methods.soup.models: two models at least, got {[*map(str, found)]}")
    return found


def fit(prepared: Any, context: Any) -> Any:
    """The mean of the models' weights, saved as a model."""
    from scpo_ray.evaluation.held_out import run_of_model
    from scpo_ray.methods.averaging import fit_mean

    task = prepared.task
    folders = model_folders(task.settings.models, task.trained_cultures)
    fitted = fit_mean(prepared, context, folders)
    unknown = [str(folder) for folder in folders if run_of_model(folder) is None]
    if unknown:
        told = (
            f"Whom these models learned from is not known: {', '.join(unknown)}. If people who are "
            "tested here are among them, the numbers are too good."
        )
        fitted = replace(fitted, told=(*fitted.told, told))
    return fitted


METHODS = Method(
    name="soup",
    about="the mean of several trained models' weights: of seeds, or of cultures",
    version=1,
    settings=Settings,
    check_settings=check_settings,
    check=check,
    select=select_every_pair,
    fit=fit,
    style=Style("#5b6b1f", "#c2d36b", "8", "-."),
    trains=False,
)
