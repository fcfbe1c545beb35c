"""What runs, models, metrics and parameters are called where a run is tracked."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from scpo_ray.results import (
    BestOfN,
    Calibration,
    CultureEvaluation,
    Difference,
    Estimate,
    OpinionScores,
    RunResult,
)
from scpo_ray.settings.run import EXECUTION, OBSERVATION, RunConfig, merged
from scpo_ray.settings.section import Section

MODEL_PREFIX = "scpo-"
_MAX_NAME_LENGTH = 80
_MAX_NAMES_LENGTH = 150
_MAX_PARAM_LENGTH = 6_000
# What may change while a run, and an evaluation of it, stay the same.
_UNTRACKED = merged(EXECUTION, {n: s for n, s in OBSERVATION.items() if n != "evaluation"})


def safe_name(culture: str) -> str:
    """A culture's name in letters, digits, "_" and "-", at most 89 characters.

    Spaces become underscores. Where anything else has to change, a hash of the whole name ends
    it, as it does in a name that looks as if it had one: two cultures never share a safe name
    (but for equal hashes, one chance in four thousand million).
    """
    if len(culture) <= _MAX_NAME_LENGTH and re.fullmatch(r"[A-Za-z0-9 -]+", culture):
        plain = culture.replace(" ", "_")
        if not re.search(r"-[0-9a-f]{8}$", plain):
            return plain
    letters = "".join(
        c for c in unicodedata.normalize("NFKD", culture) if not unicodedata.combining(c)
    )
    readable = re.sub(r"[^A-Za-z0-9-]+", "_", letters)[:_MAX_NAME_LENGTH]
    return f"{readable or '_'}-{_short_hash(culture)}"


def trained_cultures(culture_weights: Mapping[str, float]) -> list[str]:
    return [culture for culture, weight in culture_weights.items() if weight > 0]


def run_name(config: RunConfig) -> str:
    """<method>-<cultures>-s<seed>, the cultures as far as the config names them."""
    if config.culture_weights is not None:
        cultures = trained_cultures(config.culture_weights)
    else:
        cultures = config.data.cultures or []
    shown = "+".join(safe_name(culture) for culture in cultures) or "all"
    if len(cultures) > 3 or len(shown) > _MAX_NAMES_LENGTH:
        shown = f"{len(cultures)}-cultures"
    return f"{config.method}-{shown}-s{config.seed}"


def tracked_name(config: RunConfig, setting: str) -> str:
    """What a run is called in MLflow: as `run_name`, in a sweep with what its setting varies."""
    if not setting:
        return run_name(config)
    for name, symbol in (("filter_threshold", "τ"), ("weight_temperature", "β")):
        setting = setting.replace(f"{name}=", f"{symbol}=")
    weights = trained_cultures(config.culture_weights or {})
    fold = "" if config.data.split.num_folds is None else f" fold {config.data.split.fold}"
    told = f"{config.method} {setting} {', '.join(weights)} s{config.seed}{fold}"
    return _cut(" ".join(printable(told).split()))


def model_name(result: RunResult) -> str:
    """The registered model's name: of the one culture, or of the mixture."""
    cultures = trained_cultures(result.culture_weights)
    if len(cultures) == 1:
        return f"{MODEL_PREFIX}{safe_name(cultures[0])}"
    weights = {culture: result.culture_weights[culture] for culture in cultures}
    return f"{MODEL_PREFIX}mix-{_short_hash(json.dumps(weights, sort_keys=True))}"


def config_params(config: RunConfig) -> dict[str, str]:
    """Dotted setting -> value as text; lists and mappings of the data's own names as JSON.

    `culture` is what the run is trained for, in words, where the settings name it.

    A value too long for MLflow is cut and ends in a hash of the whole, so that a change in what
    was cut off still shows.
    """
    settings = dict([*_flattened(config, ""), *_of_method(config)])
    if config.culture_weights is not None:
        # A culture at 0 is left out: with and without it is one run.
        settings["culture_weights"] = {c: w for c, w in config.culture_weights.items() if w > 0}
        settings["culture"] = ", ".join(trained_cultures(config.culture_weights))
    return {
        name: _cut(printable(value))
        for name, value in settings.items()
        if name != "methods" and not _is_untracked(name)
    }


def result_metrics(result: RunResult) -> dict[str, float]:
    """Every number of a result that is there, under a name that MLflow accepts.

    `accuracy/<layer>/<culture>`, its ends `.../low` and `.../high`; the same below
    `accuracy_before`, `accuracy_difference`, `accuracy_minus_noise` (both with `p_value`, `p_holm`
    and `detectable`) and `control/<name>`;
    `accuracy_macro/<layer>` is the mean over the cultures that the model was trained for, as a
    report's macro mean is, and `accuracy_others/<layer>` that over the other tested ones; neither
    is there where a culture lacks a value. `margin_scale/<culture>`. All that is measured on test
    users; `dev/accuracy/...`, `dev/accuracy_difference/...`, `dev/accuracy_macro/...` and
    `dev/accuracy_others/...` on those held out for choices. Opinions:
    `opinions/<options>/base_<base>/<predictor>/<culture>`, or `macro`, `micro` in the culture's
    place, below `opinions_difference` minus the global model, and `opinions_temperature`. Last
    `calibration/<number>/<predictor>/<culture>` and `best_of_n/<number>/<of whom>/<culture>`."""
    metrics: dict[str, float | None] = {
        "train/seconds": result.train_seconds,
        "train/num_steps": result.num_steps,
        "train/num_pairs_seen": result.num_pairs_seen,
    }
    metrics |= _selection_metrics(result)
    trained = trained_cultures(result.culture_weights)
    metrics |= _accuracy_metrics(result.evaluation, trained)
    on_dev = _accuracy_metrics(result.dev, trained)
    for culture, evaluation in result.dev.items():
        for layer, difference in evaluation.difference.items():
            on_dev |= _with_ends(f"accuracy_difference/{layer}/{safe_name(culture)}", difference)
    metrics |= {f"dev/{name}": value for name, value in on_dev.items()}
    for culture, evaluation in result.evaluation.items():
        name = safe_name(culture)
        for layer, estimate in evaluation.after.items():
            metrics[f"num_pairs/{layer}/{name}"] = estimate.num_pairs
            metrics[f"num_clusters/{layer}/{name}"] = estimate.num_clusters
        metrics[f"margin_scale/{name}"] = evaluation.scale
        for layer, estimate in evaluation.before.items():
            metrics |= _with_ends(f"accuracy_before/{layer}/{name}", estimate)
        for kind, differences in (
            ("accuracy_difference", evaluation.difference),
            ("accuracy_minus_noise", evaluation.minus_noise),
        ):
            for layer, difference in differences.items():
                key = f"{kind}/{layer}/{name}"
                metrics |= _with_ends(key, difference)
                metrics[f"{key}/p_value"] = difference.p_value
                metrics[f"{key}/p_holm"] = difference.p_holm
                metrics[f"{key}/detectable"] = difference.detectable
        for control, layers in evaluation.controls.items():
            for layer, estimate in layers.items():
                metrics |= _with_ends(f"control/{control}/{layer}/{name}", estimate)
    for scores in result.opinions:
        metrics |= _opinion_metrics(scores)
    metrics |= _confidence_metrics(result)
    return {name: float(value) for name, value in metrics.items() if value is not None}


def _selection_metrics(result: RunResult) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for culture, selection in result.selection.items():
        name = safe_name(culture)
        metrics[f"selection/kept_share/{name}"] = selection.kept_share
        metrics[f"selection/mean_weight/{name}"] = selection.mean_weight
        metrics[f"selection/num_pairs/{name}"] = selection.num_pairs
        metrics[f"selection/num_selected/{name}"] = selection.num_selected
    chosen = result.chosen_selection
    if chosen is not None:
        metrics["selection/filter_threshold"] = chosen.filter_threshold
        metrics["selection/weight_temperature"] = chosen.weight_temperature
    for culture, count in result.truncated_texts.items():
        metrics[f"data/truncated_texts/{safe_name(culture)}"] = count
    return metrics


def _accuracy_metrics(
    evaluations: Mapping[str, CultureEvaluation], trained: Sequence[str]
) -> dict[str, float | None]:
    """Of one side: each culture's accuracy by layer, and the means over trained and other ones."""
    metrics: dict[str, float | None] = {}
    by_layer: dict[tuple[str, str], list[float | None]] = {}
    for culture, evaluation in evaluations.items():
        kind = "accuracy_macro" if culture in trained else "accuracy_others"
        for layer, estimate in evaluation.after.items():
            metrics |= _with_ends(f"accuracy/{layer}/{safe_name(culture)}", estimate)
            by_layer.setdefault((kind, layer), []).append(estimate.value)
    for (kind, layer), values in by_layer.items():
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            metrics[f"{kind}/{layer}"] = sum(known) / len(known)
            metrics[f"{kind}/{layer}/num_cultures"] = len(known)
    return metrics


def _opinion_metrics(scores: OpinionScores) -> dict[str, float | None]:
    place = f"{scores.options}/base_{scores.base}"
    # "macro" and "micro" are no country's name.
    estimates = {safe_name(culture): found for culture, found in scores.cultures.items()}
    estimates |= {"macro": scores.macro, "micro": scores.micro}
    differences = {safe_name(culture): found for culture, found in scores.difference.items()}
    differences |= {"macro": scores.macro_difference}
    metrics: dict[str, float | None] = {}
    for name, of_predictors in estimates.items():
        for predictor, estimate in of_predictors.items():
            metrics |= _with_ends(f"opinions/{place}/{predictor}/{name}", estimate)
        counted = of_predictors["model"]
        metrics[f"opinions_count/{place}/distributions/{name}"] = counted.num_pairs
        metrics[f"opinions_count/{place}/questions/{name}"] = counted.num_clusters
    for name, of_models in differences.items():
        for predictor, difference in of_models.items():
            key = f"opinions_difference/{place}/{predictor}/{name}"
            metrics |= _with_ends(key, difference)
            metrics |= {f"{key}/p_value": difference.p_value, f"{key}/p_holm": difference.p_holm}
    for culture, fitted in scores.temperatures.items():
        for predictor, temperature in fitted.items():
            # The same for both bases: written once over itself.
            name = f"opinions_temperature/{scores.options}/{predictor}/{safe_name(culture)}"
            metrics[name] = temperature
    return metrics


def _confidence_metrics(result: RunResult) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for culture, calibration in result.calibration.items():
        metrics |= _calibration_metrics(safe_name(culture), calibration)
    for culture, picked in result.best_of_n.items():
        metrics |= _best_of_n_metrics(safe_name(culture), picked)
    return metrics


def _calibration_metrics(name: str, found: Calibration) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for predictor, temperature in found.temperatures.items():
        metrics[f"calibration/temperature/{predictor}/{name}"] = temperature
    for predictor, error in found.error.items():
        metrics[f"calibration/error/{predictor}/{name}"] = error
    numbers: dict[str, Mapping[str, Estimate | Difference]] = {
        "brier": found.brier,
        "brier_minus_global": found.brier_minus_global,
        "error_debiased": found.error_debiased,
        "overconfidence": found.overconfidence,
        "vote_distance": found.vote_distance,
    }
    for number, by_predictor in numbers.items():
        for predictor, estimate in by_predictor.items():
            metrics |= _with_ends(f"calibration/{number}/{predictor}/{name}", estimate)
    for predictor, difference in found.brier_minus_global.items():
        key = f"calibration/brier_minus_global/{predictor}/{name}"
        metrics |= {f"{key}/p_value": difference.p_value, f"{key}/p_holm": difference.p_holm}
    return metrics


def _best_of_n_metrics(name: str, found: BestOfN) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {
        f"best_of_n/num_prompts/{name}": found.num_prompts,
        f"best_of_n/mean_responses/{name}": found.mean_responses,
    }
    numbers = {
        "regret": found.regret,
        "regret_sd": found.regret_sd,
        "win_rate": found.win_rate,
    }
    for number, by_pick in numbers.items():
        for pick, estimate in by_pick.items():
            metrics |= _with_ends(f"best_of_n/{number}/{pick}/{name}", estimate)
    for number, difference in (
        ("regret", found.regret_minus_global),
        ("regret_sd", found.regret_sd_minus_global),
    ):
        if difference is not None:
            key = f"best_of_n/{number}/minus_global/{name}"
            metrics |= _with_ends(key, difference)
            metrics[f"{key}/p_value"] = difference.p_value
    return metrics


def result_tags(result: RunResult) -> dict[str, str]:
    """What a run was made of, for its MLflow run: `scpo.` and the record's own words."""
    tags = {
        "scpo.run_id": result.run_id,
        "scpo.evaluation_id": result.evaluation_id,
        "scpo.method": result.method,
        "scpo.seed": str(result.seed),
        "scpo.culture": ", ".join(trained_cultures(result.culture_weights)),
        "scpo.device": result.device,
        "scpo.engine": result.engine,
        "scpo.num_workers": str(result.num_workers),
    }
    tags |= {f"scpo.fingerprint.{name}": value for name, value in result.fingerprints.items()}
    tags |= {f"scpo.version.{name}": value for name, value in result.versions.items()}
    return {name: _cut(printable(value)) for name, value in tags.items()}


def version_tags(result: RunResult) -> dict[str, str]:
    """What a registered version says of itself; accuracy by layer where it is of one culture."""
    names = ("scpo.run_id", "scpo.method", "scpo.seed", "scpo.culture")
    tags = {name: value for name, value in result_tags(result).items() if name in names}
    cultures = trained_cultures(result.culture_weights)
    evaluation = result.evaluation.get(cultures[0]) if len(cultures) == 1 else None
    if evaluation is not None:
        for layer, estimate in evaluation.after.items():
            if estimate.value is not None:
                tags[f"scpo.accuracy.{layer}"] = repr(estimate.value)
    return tags


def printable(value: Any) -> str:
    """Text that any store can hold: lone surrogates and NUL are written as escapes."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def _of_method(config: RunConfig) -> list[tuple[str, Any]]:
    own = config.own_settings
    return [] if own is None else _flattened(own, f"methods.{config.method}.")


def _is_untracked(setting: str) -> bool:
    section, _, name = setting.partition(".")
    below = _UNTRACKED.get(section)
    return below is True or (below is not None and name in below)


def _with_ends(name: str, estimate: Estimate | Difference) -> dict[str, float | None]:
    return {
        name: estimate.value,
        f"{name}/low": estimate.low,
        f"{name}/high": estimate.high,
    }


def _flattened(section: Section, prefix: str) -> list[tuple[str, Any]]:
    dumped = section.model_dump(mode="json")
    settings: list[tuple[str, Any]] = []
    for field in type(section).model_fields:
        value = getattr(section, field)
        if isinstance(value, Section):
            settings += _flattened(value, f"{prefix}{field}.")
        else:
            settings.append((f"{prefix}{field}", dumped[field]))
    return settings


def _cut(text: str) -> str:
    if len(text) <= _MAX_PARAM_LENGTH:
        return text
    return f"{text[: _MAX_PARAM_LENGTH - 20]}... {_short_hash(text)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
