"""A run's model as a folder of its own."""

import shutil
from pathlib import Path

from scpo_ray.models.adapters import merged_adapters
from scpo_ray.models.export import load_exported, save_reward_model
from scpo_ray.models.files import CALIBRATION_FILE
from scpo_ray.records import InputError
from scpo_ray.storage.disk import whole_folder
from scpo_ray.storage.run_dir import trained_model_dir
from scpo_ray.storage.scale_file import SCALE_FILE


def export_model(run: Path, folder: Path, *, merge: bool) -> None:
    """Writes a run's model as a plain Hugging Face folder.

    Raises: InputError if the run has no model, `folder` exists, or there is nothing to merge.
    """
    model_dir = trained_model_dir(run)
    if folder.exists():
        raise InputError(f"{folder}: exists; name a new folder")
    model = load_exported(model_dir, device="cpu")
    with whole_folder(folder) as part:
        save_reward_model(merged_adapters(model) if merge else model, part)
        for name in (CALIBRATION_FILE, SCALE_FILE):
            if (model_dir / name).is_file():
                shutil.copy(model_dir / name, part)
