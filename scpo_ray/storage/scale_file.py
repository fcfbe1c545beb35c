"""The scale in a model's folder."""

from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from scpo_ray.results import Scale
from scpo_ray.storage.disk import put_into, signed_json
from scpo_ray.storage.run_dir import load_document

SCALE_FILE = "scpo_scale.json"
_SCALE: TypeAdapter[Scale] = TypeAdapter(Scale)


def save_scale(folder: Path, scale: Scale) -> None:
    """Adds to a model's folder, and to what it is signed with, the scale of its rewards."""
    put_into(folder, SCALE_FILE, signed_json(asdict(scale)))


def load_scale(folder: Path) -> Scale | None:
    """The scale of the model in `folder`; None where it has none. Raises: InputError if it is
    damaged."""
    path = folder / SCALE_FILE
    if not path.exists():
        return None
    scale: Scale = load_document(path, _SCALE, "export or train the model again")
    return scale
