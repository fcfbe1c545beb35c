"""A first config from a file of preferences."""

from pathlib import Path

from scpo_ray.data.guess import NUM_ROWS, Guess, guess_columns
from scpo_ray.records import InputError
from scpo_ray.settings.documents import write_yaml
from scpo_ray.settings.files import load_config
from scpo_ray.storage.disk import whole_file


def write_first_config(data: Path, config: Path, model: str | None) -> Guess:
    """Writes a run's settings for a file of preferences, with what was seen in it.

    Args:
        model: the global reward model; None: the settings' default.

    Raises: InputError if the file cannot be read or understood, or `config` exists.
    """
    if config.exists():
        raise InputError(f"{config}: exists; name another file with --output")
    guess = guess_columns(data)
    first = next(iter(guess.cultures))
    document = {
        "culture_weights": {first: 1.0},
        "data": {
            "source": "preferences",
            "train_files": [str(data)],
            "columns": guess.columns,
            **({} if guess.split_by == "user" else {"split": {"by": guess.split_by}}),
        },
        **({"model": {"path": model}} if model else {}),
    }
    others = ", ".join(list(guess.cultures)[1:9])
    more = f" and {len(guess.cultures) - 9} more" if len(guess.cultures) > 9 else ""
    lines = [
        f"From {data.name}, at most {NUM_ROWS:,} rows of it. Look at it: scpo data {config}",
        *guess.reasons,
        f"A model for {first}, which has the most rows; there are also: {others}{more}",
    ]
    header = "".join(f"# {' '.join(line.split())}\n" for line in lines)
    with whole_file(config) as part:
        part.write_text(header + write_yaml(document), encoding="utf-8")
        load_config(part)
    return guess
