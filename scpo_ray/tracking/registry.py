"""Registered models: which version is champion, and what each decision leaves in MLflow."""

import json
import logging
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from scpo_ray.evaluation.champion import MARGIN, Contest, Judgement, in_points, judge
from scpo_ray.evaluation.comparable import PairOutcomes, pair_outcomes
from scpo_ray.evaluation.held_out import EndedRun
from scpo_ray.records import HeldOut, InputError
from scpo_ray.results import Difference, RunResult
from scpo_ray.settings.evaluation import EvaluationConfig
from scpo_ray.settings.naming import MODEL_PREFIX, trained_cultures
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.run_dir import (
    DEV_PAIRS_FILE,
    RESULT_FILE,
    TEST_PAIRS_FILE,
    load_dev_pairs,
    load_result,
    load_test_pairs,
    trained_model_dir,
)
from scpo_ray.tracking.mlflow_store import (
    CANDIDATE,
    CHAMPION,
    find_run,
    log_model,
    model_folder,
    open_models,
)
from scpo_ray.tracking.opening import StoreAwayError, slow_uploads, store_errors
from scpo_ray.tracking.trackers import start_tracker

log = logging.getLogger(__name__)

_Content = TypeVar("_Content")

# A version by its number or alias; names of models are letters, digits and what parts them.
_REGISTERED = re.compile(r"(?P<name>[\w.-]+)[@:](?P<version>[\w.-]+)")

_PAIRS: dict[HeldOut, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    "dev": (DEV_PAIRS_FILE, load_dev_pairs),
    "test": (TEST_PAIRS_FILE, load_test_pairs),
}

# Tags of a version. Those of a decision begin with "scpo.champion."; the last one written says
# that all of it has been.
_DECISION = "scpo.champion."
_DECIDED = f"{_DECISION}decided"
_JUDGEMENT = f"{_DECISION}judgement"
_NOT_CHAMPION = "scpo.not_champion"
_BY_FORCE = "scpo.promoted_by_force"
_UNTIL = "scpo.champion_until"
# The champion that this one's line began with: put there by nobody's rule, or by force.
_FIRST = "scpo.champion_first"
# A registry where somebody else's champion comes and goes this often is not to be waited for.
_MAX_TRIES = 5
_ALREADY = "it is the champion already"


@dataclass(frozen=True)
class _Tested:
    """A model as the rule sees it: what it was trained for, how and with what outcome tested, on
    the side that choices are made on."""

    result: RunResult
    outcomes: PairOutcomes


def register_champion(config: RunConfig, result: RunResult, run_dir: Path) -> Judgement:
    """Registers a finished run's model, which becomes champion if the rule allows.

    The model and its dev and test pairs are logged into the run's own MLflow run, whatever
    `tracking.log_model` says; where there is none, the run is tracked first. A version that is
    not champion is the candidate, if no newer one is. Called again, it returns the judgement of the
    first time and changes nothing, even if the champion is another one by now (`promote` judges
    anew).

    Args:
        config: as the run was started.
        run_dir: the run's folder, with its model and pairs.

    Raises: InputError if the run is not tracked by MLflow, has trained no model or no dev (or,
        without dev users, test) pairs can be read, or if the store fails; nothing is decided then.
    """
    if config.tracking.tracker != "mlflow":
        raise InputError(
            f"tracking.tracker = {config.tracking.tracker}: models are registered with MLflow"
        )
    if not (run_dir / "model").is_dir():
        raise InputError(f"{run_dir}: no model to register (method {result.method})")
    model_dir = trained_model_dir(run_dir)
    _, load = _PAIRS[result.chosen_on]
    tested = _Tested(result, pair_outcomes(load(run_dir)))
    uri = config.mlflow_uri
    client, run = find_run(config, run_dir)
    if run is None:
        tracker = start_tracker(config, run_dir)
        tracker.log_result(result, run_dir)
        tracker.finish("FINISHED")
        client, run = find_run(config, run_dir)
        if run is None:
            raise InputError(f"{run_dir}: its run cannot be found in MLflow at {uri}")
    with store_errors(uri), slow_uploads():
        version = log_model(client, run.info.experiment_id, run.info.run_id, model_dir, result)
        version = client.get_model_version(version.name, version.version)
    if _DECIDED in version.tags:
        return _recorded(version)
    judgement = _decide(client, uri, version, tested)
    found = "champion" if judgement.is_champion else "candidate"
    log.info("%s registered as %s: %s", judgement.model, found, judgement.reason)
    return judgement


def compare_versions(uri: str, model: str, champion: str) -> Judgement:
    """What the rule says of one registered version against another, of any model; changes nothing.

    Args:
        model, champion: as in "scpo-Mexico:3" or "scpo-Mexico:champion".

    Raises: InputError if one of them is not there, both are one version, their pairs cannot be
        read or are not the same ones, or the store cannot be used.
    """
    client, aliases = open_models(uri, MODEL_PREFIX)
    versions = [_version(client, uri, aliases, name) for name in (model, champion)]
    if _name(versions[0]) == _name(versions[1]):
        raise InputError(f"{model} and {champion} are one version, {_name(versions[0])}: name two")
    tested = _tested(client, uri, versions[0])
    judgement = _judged(client, uri, versions[0], tested, versions[1])
    judgement = _named(judgement, *versions)
    if not judgement.contests:
        raise InputError(f"{judgement.model} and {judgement.champion}: {judgement.reason}")
    return judgement


def registered_name(asked: str) -> str | None:
    """A version as in "scpo-Chile@champion" or "scpo-Chile:3", with a colon; None if it is none."""
    named = _REGISTERED.fullmatch(asked)
    return None if named is None else f"{named['name']}:{named['version']}"


def fetch_run(uri: str, model: str, downloads: Path) -> tuple[Path, RunResult]:
    """The exported folder in a registered version, and the result of the run that made it.

    Args and errors as for `fetch_model`; InputError too if the version's MLflow run has no result.
    """
    client, aliases = open_models(uri, MODEL_PREFIX)
    version = _version(client, uri, aliases, model)
    result = _read(client, uri, version, RESULT_FILE, load_result)
    with store_errors(uri), slow_uploads():
        return model_folder(version, uri, downloads), result


def fetch_ended_run(uri: str, model: str) -> EndedRun:
    """The run that made a registered version, with the pairs that it held out.

    Raises: InputError if the version or what its run left cannot be read, or the store be used.
    """
    client, aliases = open_models(uri, MODEL_PREFIX)
    version = _version(client, uri, aliases, model)
    result = _read(client, uri, version, RESULT_FILE, load_result)
    test = _read(client, uri, version, *_PAIRS["test"])
    dev = _read(client, uri, version, *_PAIRS["dev"]) if result.dev else None
    return EndedRun(result, test, dev)


def fetch_model(uri: str, model: str, downloads: Path) -> tuple[str, Path]:
    """A registered version's name, as in "scpo-Mexico:3", and the exported folder in it.

    Args:
        model: as in "scpo-Mexico:3" or "scpo-Mexico:champion".
        downloads: a folder for what the store keeps elsewhere than on this machine's disk.

    Raises: InputError if it is not there or the store cannot be used.
    """
    client, aliases = open_models(uri, MODEL_PREFIX)
    version = _version(client, uri, aliases, model)
    with store_errors(uri), slow_uploads():
        return _name(version), model_folder(version, uri, downloads)


def promote(uri: str, model: str, *, force: bool) -> Judgement:
    """Makes a registered version champion if the rule allows, or with `force` in any case.

    The rule is asked anew, whatever it said when the version was registered. `force` is recorded
    with what it overrode. The champion itself stays as it is.

    Args:
        model: as in "scpo-Mexico:3" or "scpo-Mexico:candidate".

    Raises: InputError if it is not there or the store cannot be used.
    """
    client, aliases = open_models(uri, MODEL_PREFIX)
    version = _version(client, uri, aliases, model)
    if aliases[version.name].get(CHAMPION) == int(version.version):
        return _named(Judgement(True, _ALREADY, MARGIN, []), version, None)
    return _decide(client, uri, version, None, force=force)


def _decide(
    client: Any, uri: str, version: Any, tested: _Tested | None, *, force: bool = False
) -> Judgement:
    """Judges a version, fetching what is not given, and writes down what is decided."""
    for _ in range(_MAX_TRIES):
        champion = _champion(client, uri, version.name)
        judgement = _judgement(client, uri, version, champion, tested)
        overridden = ""
        if _name(champion) == _name(version):
            overridden = version.tags.get(_BY_FORCE, "")
        elif force and not judgement.is_champion:
            overridden = judgement.reason
            reason = f"promoted by force, though {overridden}"
            judgement = replace(judgement, is_champion=True, reason=reason)
        # Another process may have promoted a version meanwhile, which this one must then beat.
        now = _champion(client, uri, version.name)
        if _name(now) == _name(champion):
            with store_errors(uri):
                _write(client, version, champion, judgement, overridden)
            return judgement
    raise InputError(f"{version.name}: its champion keeps changing; try again")


def _judgement(
    client: Any, uri: str, version: Any, champion: Any | None, tested: _Tested | None
) -> Judgement:
    if champion is None:
        return _named(Judgement(True, "there was no champion", MARGIN, []), version, None)
    if _name(champion) == _name(version):
        # A call was cut short after it had moved the alias.
        if _JUDGEMENT in version.tags:
            return _recorded(version)
        return _named(Judgement(True, _ALREADY, MARGIN, []), version, None)
    try:
        tested = tested or _tested(client, uri, version)
        judgement = _judged(client, uri, version, tested, champion)
    except StoreAwayError:
        raise
    except InputError as error:
        reason = f"it cannot be compared: {' '.join(str(error).split())}"
        judgement = Judgement(False, reason, MARGIN, [])
    return _named(judgement, version, champion)


def _judged(client: Any, uri: str, version: Any, tested: _Tested, champion: Any) -> Judgement:
    settings = EvaluationConfig.model_validate(tested.result.config["evaluation"])
    first = _first(champion)
    begun = None
    if first != _name(champion):
        name, _, number = first.rpartition(":")
        with store_errors(uri):
            beginner = client.get_model_version(name, number)
        begun = _rival(client, uri, version, tested, beginner)
    judgement = judge(
        tested.outcomes,
        _rival(client, uri, version, tested, champion),
        trained_cultures(tested.result.culture_weights),
        first=begun,
        distinctive_threshold=settings.distinctive_threshold,
        margin=MARGIN,
    )
    return replace(judgement, side=tested.result.chosen_on)


def _rival(client: Any, uri: str, version: Any, tested: _Tested, rival: Any) -> PairOutcomes:
    """What a version that another one is held against did, on the side of both.

    Raises: InputError if they are of different sides: the one without dev users may have learned
        from the other's, and test users are not there to be chosen on.
    """
    result = _read(client, uri, rival, RESULT_FILE, load_result)
    if result.chosen_on != tested.result.chosen_on:
        both = " and ".join(
            f"{_name(of)} on {found.chosen_on} users "
            f"(data.split.dev_size {found.config['data']['split']['dev_size']:g})"
            for of, found in ((version, tested.result), (rival, result))
        )
        raise InputError(
            f"{both} are judged on different people: train {_name(version)} anew with the "
            f"data.split of {_name(rival)}, or promote it by force"
        )
    return _outcomes(client, uri, rival, result.chosen_on)


def _first(champion: Any) -> str:
    """The first champion of a champion's line, as in "scpo-Mexico:3"."""
    return str(champion.tags.get(_FIRST, _name(champion)))


def _write(
    client: Any, version: Any, champion: Any | None, judgement: Judgement, overridden: str
) -> None:
    """Tags and aliases of a decision; one that was cut short is taken anew by the next call."""
    name, number = version.name, version.version
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for tag in version.tags:
        if tag.startswith(_DECISION) or tag in (_NOT_CHAMPION, _BY_FORCE):
            client.delete_model_version_tag(name, number, tag)
    for tag, value in _tags(judgement, overridden).items():
        client.set_model_version_tag(name, number, tag, value)
    aliases = client.get_registered_model(name).aliases
    candidate = int(aliases.get(CANDIDATE, 0))
    if judgement.is_champion:
        if champion is not None and _name(champion) != _name(version):
            client.set_model_version_tag(name, champion.version, _UNTIL, now)
        judged = champion is not None and not overridden
        first = _first(champion) if judged else _name(version)
        client.set_model_version_tag(name, number, _FIRST, first)
        client.set_registered_model_alias(name, CHAMPION, number)
        if _UNTIL in version.tags:
            client.delete_model_version_tag(name, number, _UNTIL)
        if candidate == int(number):
            client.delete_registered_model_alias(name, CANDIDATE)
    elif candidate < int(number):
        client.set_registered_model_alias(name, CANDIDATE, number)
    client.set_model_version_tag(name, number, _DECIDED, now)


def _tags(judgement: Judgement, overridden: str) -> dict[str, str]:
    tags = {
        _JUDGEMENT: json.dumps(asdict(judgement)),
        f"{_DECISION}margin": str(judgement.margin),
        f"{_DECISION}against": judgement.champion or "none",
        f"{_DECISION}side": judgement.side,
    }
    for contest in judgement.contests:
        since = "since_first_" if contest.against == "first champion" else ""
        tags[f"{_DECISION}{since}{contest.test_pairs.replace(' ', '_')}"] = in_points(contest)
    if not judgement.is_champion:
        tags[_NOT_CHAMPION] = judgement.reason
    elif overridden:
        tags[_BY_FORCE] = overridden
    return tags


def _recorded(version: Any) -> Judgement:
    document = json.loads(version.tags[_JUDGEMENT])
    contests = [
        Contest(**{**contest, "difference": Difference(**contest["difference"])})
        for contest in document.pop("contests")
    ]
    return Judgement(**document, contests=contests)


def _named(judgement: Judgement, version: Any, champion: Any | None) -> Judgement:
    first = "" if champion is None else _first(champion)
    return replace(judgement, model=_name(version), champion=_name(champion), first=first)


def _name(version: Any | None) -> str:
    return "" if version is None else f"{version.name}:{version.version}"


def _champion(client: Any, uri: str, name: str) -> Any | None:
    with store_errors(uri):
        number = client.get_registered_model(name).aliases.get(CHAMPION)
        return None if number is None else client.get_model_version(name, str(number))


def _version(client: Any, uri: str, aliases: Mapping[str, Mapping[str, int]], model: str) -> Any:
    """MLflow's version under a name and a number or alias."""
    name, _, wanted = model.rpartition(":")
    if not name or not wanted:
        raise InputError(f"{model}: which version? As in {model or 'scpo-Mexico'}:champion")
    if name not in aliases:
        known = ", ".join(sorted(aliases)) or "none"
        raise InputError(f"{model}: no such model; there are: {known}")
    with store_errors(uri):
        found = client.search_model_versions(f"name = '{name}'")
        numbers = sorted(int(version.version) for version in found)
        number = aliases[name].get(wanted, int(wanted) if wanted.isdecimal() else 0)
        if number in numbers:
            return client.get_model_version(name, str(number))
    known = ", ".join([*map(str, numbers), *sorted(aliases[name])]) or "none"
    raise InputError(f"{model}: no such version; there are: {known}")


def _tested(client: Any, uri: str, version: Any) -> _Tested:
    result = _read(client, uri, version, RESULT_FILE, load_result)
    return _Tested(result, _outcomes(client, uri, version, result.chosen_on))


def _outcomes(client: Any, uri: str, version: Any, side: HeldOut) -> PairOutcomes:
    columns = _read(client, uri, version, *_PAIRS[side])
    try:
        return pair_outcomes(columns)
    except InputError as error:
        raise InputError(f"{_name(version)}: {error}") from None


def _read(
    client: Any, uri: str, version: Any, file: str, load: Callable[[Path], _Content]
) -> _Content:
    """What `load` makes of a folder with that file of the version's MLflow run.

    Raises: InputError if the run has no such file or it is damaged; StoreAwayError as the store.
    """
    with store_errors(uri):
        found = {artifact.path for artifact in client.list_artifacts(version.run_id)}
    if file not in found:
        raise InputError(f"{_name(version)}: its MLflow run has no {file}")
    with store_errors(uri), tempfile.TemporaryDirectory() as folder:
        client.download_artifacts(version.run_id, file, folder)
        try:
            return load(Path(folder))
        except InputError as error:
            # The folder is gone when this is read.
            reason = (error.problems or (str(error),))[0]
            raise InputError(f"{_name(version)}: {file} cannot be read ({reason})") from None
