"""A model's renderer as far as it is known without its tokenizer, which takes seconds to load."""

import hashlib
import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import scpo_ray
from scpo_ray.models.rendering import RENDERING_RULES, Renderer, load_renderer
from scpo_ray.records import InputError
from scpo_ray.settings.model import ModelConfig
from scpo_ray.storage.disk import digest_once, read_json, remove, write_json

log = logging.getLogger(__name__)

_LIBRARIES = ("transformers", "tokenizers")
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt"}
# Where transformers keeps chat templates beside the default one.
_TEMPLATES = "additional_chat_templates"
_REMEDY = "it is made anew"


class KnownRenderer:
    """A model's renderer, whose tokenizer is loaded when a text is to be rendered.

    `fingerprint`, `unknown_id`: as `Renderer`'s. `folder`, `config`: what it is loaded from.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        *,
        fingerprint: str,
        unknown_id: int | None,
        record: Path | None = None,
        renderer: Renderer | None = None,
    ) -> None:
        self.folder, self.config = folder, config
        self.fingerprint, self.unknown_id = fingerprint, unknown_id
        self._record, self._renderer = record, renderer

    @property
    def loaded(self) -> Renderer:
        """Raises: InputError as `load_renderer`, or if it is not the renderer that was known."""
        if self._renderer is None:
            renderer = load_renderer(self.folder, self.config)
            if renderer.fingerprint != self.fingerprint:
                if self._record is not None:
                    remove(self._record)
                raise InputError(
                    f"model.path = {self.config.path}: the tokenizer is not what it was when this "
                    "command began",
                    ["repeat the command"],
                )
            self._renderer = renderer
        return self._renderer


def known_renderer(folder: Path, config: ModelConfig, records: Path) -> KnownRenderer:
    """The renderer of the model in `folder`; its tokenizer is loaded only if it is new here.

    What is known of one lies below `records`, under a hash of all files that a tokenizer can be
    read from, the settings and the libraries that read them. Code that comes with a model may
    look elsewhere, so that with `config.trust_remote_code` it is loaded each time.

    Raises: InputError as `load_renderer`, or if the network reads fewer tokens than
        `config.max_length`.
    """
    record = None if config.trust_remote_code else records / f"{_key(folder, config)}.json"
    if record is not None and record.exists():
        try:
            document = json.loads(read_json(record, _REMEDY))
            return KnownRenderer(folder, config, **document, record=record)
        except (InputError, ValueError, TypeError) as error:
            log.warning("what is known of a tokenizer is damaged, and made anew: %s", error)
    # With torch, which the renderer that is known does without.
    from scpo_ray.models.loading import check_max_length

    renderer = load_renderer(folder, config)
    check_max_length(folder, config)
    known: dict[str, Any] = {
        "fingerprint": renderer.fingerprint,
        "unknown_id": renderer.unknown_id,
    }
    if record is not None:
        write_json(record, known)
    return KnownRenderer(folder, config, **known, record=record, renderer=renderer)


def _key(folder: Path, config: ModelConfig) -> str:
    """Of all that decides what `load_renderer` makes of a folder."""
    files = [*folder.glob("*"), *folder.glob(f"{_TEMPLATES}/*")]
    read = sorted(path for path in files if path.suffix not in _WEIGHTS and path.is_file())
    document = {
        "rules": RENDERING_RULES,
        "versions": [scpo_ray.__version__, *map(version, _LIBRARIES)],
        "style": config.renderer,
        "max_length": config.max_length,
        "files": {path.relative_to(folder).as_posix(): digest_once(path) for path in read},
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]
