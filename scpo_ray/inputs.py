"""What a run reads before any network is loaded, and where it keeps that.

Nothing here needs torch: a command that only looks at the data is done before torch is loaded."""

import logging
from pathlib import Path

import numpy as np

from scpo_ray.models.known_renderer import KnownRenderer
from scpo_ray.models.rendering import RefusedTexts, refusal
from scpo_ray.models.same_tokens import told_apart
from scpo_ray.models.tokenizing import tokenize
from scpo_ray.records import PreferenceData, Tokens
from scpo_ray.settings.naming import run_name
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.remote import RemoteFolder
from scpo_ray.storage.run_dir import RunDir
from scpo_ray.storage.stores import TokenStore

log = logging.getLogger(__name__)


def open_run_dir(config: RunConfig) -> RunDir:
    """The run's folder: the same config finds the same one, and so resumes or is done."""
    below = Path(config.experiment) / f"{run_name(config)}-{config.run_id}"
    storage = config.launch.storage
    remote = None if storage is None else RemoteFolder(storage).below(below.as_posix())
    return RunDir(config.output_dir / below, config.output_dir / "cache", remote)


def with_tokens(
    data: PreferenceData, renderer: KnownRenderer, store: TokenStore
) -> tuple[PreferenceData, Tokens]:
    """The data without the pairs that its tokens do not tell apart, and the tokens.

    Raises: InputError for what cannot be rendered.
    """
    try:
        tokens = tokenize(renderer, data.texts, store)
    except RefusedTexts as refused:
        raise refusal(refused, data, renderer.config.path) from None
    num_warnings = len(data.warnings)
    data = told_apart(data, tokens, renderer.unknown_id)
    for warning in data.warnings[num_warnings:]:
        log.warning("%s", warning)
    if tokens.truncated.any():
        log.info(
            "%d of %d texts are longer than %d tokens and were cut",
            tokens.truncated.sum(),
            len(tokens.truncated),
            renderer.config.max_length,
        )
    return data, tokens


def truncated_texts(data: PreferenceData, tokens: Tokens) -> dict[str, int]:
    """Culture -> how many of its pairs' distinct texts were cut at the maximum length."""
    counts = {}
    for code, culture in enumerate(data.cultures):
        texts = [
            texts_of_side[pairs.culture_codes == code]
            for pairs in data.sides
            for texts_of_side in (pairs.chosen, pairs.rejected)
        ]
        counts[culture] = int(tokens.truncated[np.unique(np.concatenate(texts))].sum())
    return counts
