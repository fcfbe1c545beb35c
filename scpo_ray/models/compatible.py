"""What an exported folder's small files say, so that other tools read the reward that is ours."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scpo_ray.models.reading import num_token_rows
from scpo_ray.models.rendering import RefusedTexts, Renderer
from scpo_ray.records import Text

_NO_ACTIVATION = "torch.nn.modules.linear.Identity"
_LABEL = "reward"


@dataclass(frozen=True)
class Padding:
    """The token that a folder pads with.

    `is_new`: the model's config had none that can be used. `hides_end`: a text ends in it, so that
    transformers reads the reward at the token before, and tools that go by the mask do not.
    """

    token: str
    token_id: int
    is_new: bool
    hides_end: bool


def padding_of(renderer: Renderer, plain: Any) -> Padding | None:
    """What a folder of this model must pad with; None where there is no fitting token.

    Transformers reads a decoder's reward at the last token that is not the config's pad token,
    whatever the mask says. So the tokenizer pads with the config's, if it has one. If it has none,
    texts are padded with a token that none of them ends in: eos, which many pad with, would move
    the place.

    Args:
        plain: the network as transformers made it.
    """
    tokenizer = renderer.tokenizer
    num_rows = num_token_rows(plain) or len(tokenizer)
    last = _last_token(renderer)
    told = plain.config.get_text_config().pad_token_id
    if told is not None and 0 <= told < min(num_rows, len(tokenizer)):
        return Padding(tokenizer.convert_ids_to_tokens(told), told, False, told == last)
    taken = {tokenizer.bos_token_id, tokenizer.eos_token_id, last}
    written = "" if renderer.template is None else renderer.template.source
    special = [
        number
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and token.content not in written
    ]
    for number in (tokenizer.pad_token_id, *special, tokenizer.unk_token_id):
        if number is not None and number not in taken and number < num_rows:
            return Padding(tokenizer.convert_ids_to_tokens(number), number, True, False)
    return None


def _last_token(renderer: Renderer) -> int | None:
    """What the rendering of any text ends in; None where the template refuses a plain one."""
    try:
        return int(renderer.encode([Text((), "a", "b")]).input_ids[-1])
    except RefusedTexts:
        return None


def write_compatible(folder: Path, renderer: Renderer, padding: Padding | None) -> None:
    """Rewrites a saved folder's tokenizer and config files; older versions of transformers read
    them too (4.45 was tried)."""
    pad = None if padding is None else padding.token

    def tokenizer(document: dict[str, Any]) -> dict[str, Any]:
        return _tokenizer_settings(document, renderer, pad)

    rewrite(folder / "tokenizer_config.json", tokenizer)
    rewrite(folder / "special_tokens_map.json", lambda d: d | ({"pad_token": pad} if pad else {}))
    rewrite(folder / "tokenizer.json", lambda d: d | {"truncation": None, "padding": None})
    rewrite(folder / "config.json", lambda d: _model_settings(_with_older_names(d), padding))


def rewrite(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Changes what a JSON file says, if there is such a file."""
    if file.is_file():
        document = change(json.loads(file.read_text(encoding="utf-8")))
        text = json.dumps(document, indent=2, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")


def _tokenizer_settings(
    document: dict[str, Any], renderer: Renderer, pad: str | None
) -> dict[str, Any]:
    """Without what only the newest transformers knows, and without how this copy was loaded."""
    settings = {k: v for k, v in document.items() if k not in ("is_local", "local_files_only")}
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    settings["model_max_length"] = renderer.max_length
    if pad is not None:
        settings["pad_token"] = pad
    # A model of pairs has no template: whoever asks for one must not get another text scored.
    settings.pop("chat_template", None)
    if renderer.template is not None:
        settings["chat_template"] = renderer.template.source
    return settings


def _model_settings(document: dict[str, Any], padding: Padding | None) -> dict[str, Any]:
    """With what keeps other tools from putting a sigmoid over the reward, and a name for it."""
    settings = document | {
        "id2label": {"0": _LABEL},
        "label2id": {_LABEL: 0},
        "sentence_transformers": {"activation_fn": _NO_ACTIVATION},
    }
    if padding is not None and padding.is_new:
        settings["pad_token_id"] = padding.token_id
    return settings


def _with_older_names(document: dict[str, Any]) -> dict[str, Any]:
    """With the names that versions before 5 read rotary positions and the dtype from."""
    older: dict[str, Any] = {}
    if "dtype" in document:
        older["torch_dtype"] = document["dtype"]
    rope = document.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        kind = rope.get("rope_type", "default")
        scaling = {
            k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")
        }
        older |= {
            "rope_theta": rope["rope_theta"],
            "rope_scaling": None if kind == "default" else scaling,
        }
        if "partial_rotary_factor" in rope:
            older["partial_rotary_factor"] = rope["partial_rotary_factor"]
        if document.get("model_type") == "gpt_neox":
            older["rotary_emb_base"] = rope["rope_theta"]
            older["rotary_pct"] = rope.get("partial_rotary_factor", 0.25)
    return {**document, **{name: value for name, value in older.items() if name not in document}}
