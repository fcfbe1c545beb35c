"""Whether an ended run held out the pairs that another run is tested, or chosen, on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from scpo_ray.data.hashes import pair_hashes
from scpo_ray.evaluation.layers import pair_ids
from scpo_ray.records import Pairs, PreferenceData
from scpo_ray.results import RunResult
from scpo_ray.settings.data import DataSection
from scpo_ray.settings.methods import METHODS
from scpo_ray.settings.naming import trained_cultures
from scpo_ray.storage.run_dir import RUN_FILE, load_dev_pairs, load_result, load_test_pairs

Columns = Mapping[str, NDArray[Any]]

# Of a run's data; they change no user's side.
_READ_MORE_OR_LESS = ("cultures", "data_fraction")


@dataclass(frozen=True)
class EndedRun:
    """A run's result and the pairs that it held out: columns of `load_test_pairs`; `dev`: None
    where nobody was held out for choices."""

    result: RunResult
    test: Columns
    dev: Columns | None


def run_of_model(folder: Path) -> EndedRun | None:
    """The run in whose folder a model lies; None where it lies elsewhere, as one exported does.

    Raises: InputError if the run has not ended, or what it left is damaged.
    """
    path = folder.parent
    if not (path / RUN_FILE).is_file():
        return None
    result = load_result(path)
    return EndedRun(result, load_test_pairs(path), load_dev_pairs(path) if result.dev else None)


def not_held_out(
    runs: Sequence[EndedRun], data: PreferenceData, section: DataSection
) -> list[str | None]:
    """For each run, which of the data's test and dev pairs it did not hold out, and the settings
    that this comes of; None where it held out all. Test pairs must be test pairs there.

    Pairs of cultures that a run did not learn from do not count.

    Args:
        section: the settings that the data was read with.
    """
    ours = [(side, _named(pairs, data)) for side, pairs in (("test", data.test), ("dev", data.dev))]
    return [_said(run, ours, section) for run in runs]


# Culture, id and hash of both texts: the same id may stand for other texts, or other labels.
_Pair = tuple[str, str, int]


def _said(
    run: EndedRun, ours: Sequence[tuple[str, list[_Pair]]], section: DataSection
) -> str | None:
    test = _kept(run.test)
    held_out = {"test": test, "dev": test | (set() if run.dev is None else _kept(run.dev))}
    learned = trained_cultures(run.result.culture_weights)
    how = METHODS[run.result.method]
    # What trains nothing may be made of anything, as a soup of several cultures is.
    if how.learns_from_all or not how.trains:
        learned = list(run.result.data)
    says_texts = "pair_hash" in run.test
    found = []
    for side, pairs in ours:
        mine = [(c, name, texts if says_texts else 0) for c, name, texts in pairs if c in learned]
        missing = sum(pair not in held_out[side] for pair in mine)
        if missing:
            found.append(f"{missing} of {len(mine)} {side} pairs")
    if not found:
        return None
    changed = _changed(run.result.config["data"], section.model_dump(mode="json"))
    why = "; ".join(changed) or "the settings are the same: the data's files have changed"
    return f"{' and '.join(found)} of this run were not held out there: {why}"


def _named(pairs: Pairs, data: PreferenceData) -> list[_Pair]:
    hashes = data.texts.hashes
    cultures = [pairs.cultures[code] for code in pairs.culture_codes]
    texts = pair_hashes(hashes[pairs.chosen], hashes[pairs.rejected]).tolist()
    return list(zip(cultures, pair_ids(pairs, data.interaction_ids), texts, strict=True))


def _kept(columns: Columns) -> set[_Pair]:
    cultures, names = columns["culture"].tolist(), columns["pair_id"].tolist()
    hashes = columns.get("pair_hash")
    # A run of an earlier version says nothing of its texts.
    texts = [0] * len(names) if hashes is None else hashes.tolist()
    return set(zip(cultures, names, texts, strict=True))


def _changed(there: Mapping[str, Any], here: Mapping[str, Any], at: str = "data") -> list[str]:
    """A line for each setting that differs."""
    lines: list[str] = []
    for name in dict.fromkeys([*here, *there]):
        one, other = there.get(name), here.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            lines += _changed(one, other, f"{at}.{name}")
        elif one != other and name not in _READ_MORE_OR_LESS:
            lines.append(f"{at}.{name} is {one} there, {other} here")
    return lines
