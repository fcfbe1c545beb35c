"""Where a culture's model is: a run's folder, an exported folder, or a registered version."""

from dataclasses import dataclass
from pathlib import Path

from scpo_ray.models.files import MODEL_FILE
from scpo_ray.records import InputError
from scpo_ray.storage.run_dir import trained_model_dir
from scpo_ray.tracking.registry import fetch_model, registered_name


@dataclass(frozen=True)
class ModelSource:
    """`folder` holds the model that was asked for as `asked`; `version` is the registered one's
    name and number, as in "scpo-Chile:3", whatever its alias, and None for a folder."""

    asked: str
    folder: Path
    version: str | None


def find_model(asked: str, tracking_uri: str | None, downloads: Path) -> ModelSource:
    """The model that is named.

    Args:
        asked: a run's folder, an exported folder, or as in "scpo-Chile@champion", "scpo-Chile:3".
        tracking_uri: of the MLflow store with the registered models.
        downloads: a folder for what a store keeps elsewhere.

    Raises: InputError if there is no such model, or none was trained in the folder.
    """
    folder = Path(asked)
    if (folder / MODEL_FILE).is_file():
        return ModelSource(asked, folder, None)
    if folder.is_dir():
        return ModelSource(asked, trained_model_dir(folder), None)
    wanted = registered_name(asked)
    if wanted is None:
        raise InputError(
            f"{asked}: no such folder",
            ["name a run's folder, an exported one, or a registered model: scpo-Chile@champion"],
        )
    if tracking_uri is None:
        raise InputError(
            f"{asked}: no such folder, and no MLflow store to look it up in",
            ["give the store's URI for a registered model"],
        )
    version, model_dir = fetch_model(tracking_uri, wanted, downloads)
    return ModelSource(asked, model_dir, version)
