"""An exported folder on the hub."""

import json
from pathlib import Path

from scpo_ray.models.files import ADAPTER_CONFIG
from scpo_ray.records import InputError
from scpo_ray.storage.disk import MANIFEST

_REMEDY = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"


def check_portable(folder: Path) -> None:
    """Raises: InputError if the folder holds adapters whose base model lies on this machine."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    base = str(json.loads((folder / ADAPTER_CONFIG).read_text())["base_model_name_or_path"])
    if Path(base).is_absolute() or Path(base).exists():
        raise InputError(
            f"{folder}: adapters whose base model is a folder of this machine, {base}",
            ["nobody else could load them: export with --merge"],
        )


def push_folder(folder: Path, repository: str) -> str:
    """Uploads an exported folder as a model; one that is not there is made, private.

    Returns: its address.
    Raises: InputError if the hub cannot be reached, or refuses the name, the token or the files.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        # The manifest speaks of this folder; a copy elsewhere may lack some of its files.
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Reward model exported by scpo",
            ignore_patterns=[MANIFEST],
        )
    except Exception as error:  # the library lets through what its client raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--push {repository}: the model cannot be uploaded; it lies in {folder}",
            [reason, _REMEDY],
        ) from None
    return str(done.repo_url)
