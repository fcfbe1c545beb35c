"""Which of a prompt's candidate responses each culture and each mixture would pick."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scpo_ray.data.files import check_files, file_source
from scpo_ray.data.rows import BadField, Notes, Place
from scpo_ray.evaluation.mixtures import linear, people_shares, worst
from scpo_ray.evaluation.picks import agreement, loss_to_others, picks_of
from scpo_ray.records import InputError
from scpo_ray.report.overviews import JudgedPrompt, Steering
from scpo_ray.serve.core import CultureRewards
from scpo_ray.serve.items import How, RewardItem, checked_mix, mix_name
from scpo_ray.serve.rows import Asks, Candidates, candidates

MAX_EXAMPLES = 40
_PROMPTS_AT_ONCE = 256

Mix = tuple[Mapping[str, float], How]


def steer_file(
    file: Path, rewards: CultureRewards, mixes: Sequence[Mapping[str, float]], how: How
) -> Steering:
    """Judges the candidates of every prompt in a file by each culture and mixture.

    Args:
        file: rows with prompt and responses, at least 2 each.
        mixes: weights by culture; `how` says what they mean.

    Raises: InputError naming the rows at fault, or as `CultureRewards.rewards`.
    """
    check_files([file], "file")
    checked: list[Mix] = [(checked_mix(mix, rewards.cultures), how) for mix in mixes]
    rewards.check_mixtures([list(weights) for weights, _ in checked])
    notes = Notes()
    read = list(_read(file, notes, rewards.cultures))
    notes.raise_problems()
    judged: list[JudgedPrompt] = []
    truncated = 0
    for start in range(0, len(read), _PROMPTS_AT_ONCE):
        prompts, num_cut = _judged(read[start : start + _PROMPTS_AT_ONCE], rewards, checked)
        judged += prompts
        truncated += num_cut
    parted = [prompt for prompt in judged if len(set(prompt.picks.values())) > 1]
    parted.sort(key=lambda prompt: -prompt.parted)
    return Steering(
        judges=list(judged[0].picks),
        num_prompts=len(judged),
        num_parted=len(parted),
        agreement=agreement([prompt.picks for prompt in judged]),
        examples=parted[:MAX_EXAMPLES],
        truncated=truncated,
    )


def _read(file: Path, notes: Notes, cultures: Sequence[str]) -> Iterator[tuple[Place, Candidates]]:
    asks = Asks((), (), "rows", False)
    for place, row in file_source(file, file.name, ("prompt", "responses"), ()).read(notes):
        try:
            found = candidates(row, asks, cultures)
            if len(found.responses) < 2:
                raise BadField("responses", list(found.responses), "must hold at least 2 responses")
            yield place, found
        except InputError as error:
            notes.problem(place, ": ".join([error.title, *error.problems]))
        except ValueError as error:
            notes.problem(place, error)


def _judged(
    read: Sequence[tuple[Place, Candidates]], rewards: CultureRewards, mixes: Sequence[Mix]
) -> tuple[list[JudgedPrompt], int]:
    """Each prompt as it is judged, and how many responses a model read cut."""
    cultures = rewards.cultures
    items = [
        RewardItem(response, messages=of.messages, culture=culture)
        for _, of in read
        for culture in cultures
        for response in of.responses
    ]
    answers = rewards.rewards(items)
    said = iter(answers)
    judged = []
    for place, of in read:
        found = {culture: [next(said) for _ in of.responses] for culture in cultures}
        # Without a scale it is a model by itself: what it is worth is in its own units.
        values = {
            culture: [r.value if r.standardised is None else r.standardised for r in each]
            for culture, each in found.items()
        }
        raw = {culture: [reward.value for reward in each] for culture, each in found.items()}
        for weights, how in mixes:
            name = mix_name(list(weights.items()), how)
            of_mix, shares = list(weights), list(weights.values())
            standardised = [values[culture] for culture in of_mix]
            if how == "people":
                temperatures = [rewards.temperature(culture) for culture in of_mix]
                worth = people_shares([raw[c] for c in of_mix], temperatures, shares)
            else:
                worth = worst(standardised) if how == "worst" else linear(standardised, shares)
            values[name] = worth.tolist()
        judged.append(
            JudgedPrompt(
                place=str(place),
                turns=[(message["role"], message["content"]) for message in of.messages],
                responses=list(of.responses),
                values=values,
                picks=picks_of(values),
                parted=loss_to_others(values),
            )
        )
    cut = {
        (repr(item.messages), item.response)
        for item, answer in zip(items, answers, strict=True)
        if answer.truncated
    }
    return judged, len(cut)
