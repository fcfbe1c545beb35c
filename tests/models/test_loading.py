"""Heads are read or drawn as asked; what is missing, left over or a pickle is never passed over."""

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scpo_ray.models.export import load_exported
from scpo_ray.models.files import model_fingerprint, resolve_model_dir
from scpo_ray.models.global_model import open_global_model
from scpo_ray.models.loading import (
    check_recomputes,
    check_weights_fit,
    drawn_by,
    load_reward_model,
)
from scpo_ray.models.pickles import conversion_record
from scpo_ray.models.rendering import load_renderer
from scpo_ray.models.scoring import score_texts
from scpo_ray.records import InputError
from scpo_ray.settings.model import LoraConfig, ModelConfig
from scpo_ray.storage.stores import Stores
from tests.models.test_reading import DECODERS, ENCODERS, ROWS, SPECIAL, T5, USUAL
from tests.models.test_rendering import CHAT_TEMPLATE
from tests.models.test_reward_model import (
    TEXTS,
    assert_close,
    copied,
    loaded,
    save_tiny,
    saved,
    tiny_llama_config,
    train_a_little,
)

WEIGHTS = "model.safetensors"


def with_weights(folder: Path, change) -> Path:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def llama(tiny_backbone, tmp_path_factory) -> Path:
    from transformers import LlamaForSequenceClassification

    with drawn_by(0):
        network = LlamaForSequenceClassification(tiny_llama_config(num_labels=1))
    folder = tmp_path_factory.mktemp("models") / "llama"
    return save_tiny(network, tiny_backbone, folder, chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def causal(tiny_backbone, tmp_path_factory) -> Path:
    from transformers import LlamaForCausalLM

    with drawn_by(0):
        network = LlamaForCausalLM(tiny_llama_config())
    folder = tmp_path_factory.mktemp("models") / "causal"
    return save_tiny(network, tiny_backbone, folder, chat_template=CHAT_TEMPLATE)


def adapters_of(base: Path, folder: Path, *, with_head: bool, task: str) -> Path:
    """Adapters as the library saves them, made without this package."""
    import peft
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if with_head else AutoModelForCausalLM
    labels = {"num_labels": 1} if with_head else {}
    settings = peft.LoraConfig(
        r=2,
        target_modules=["q_proj", "v_proj"],
        task_type=task or None,
        init_lora_weights=False,
    )
    with drawn_by(1):
        network = kind.from_pretrained(base, **labels)
        peft.get_peft_model(network, settings).save_pretrained(folder)
    for path in base.glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("task", ["", "CAUSAL_LM"])
def test_adapters_without_a_head_are_refused(causal, tmp_path, task):
    folder = adapters_of(causal, tmp_path / "adapters", with_head=False, task=task)

    with pytest.raises(InputError, match="no score head, neither in the adapters nor in their ba"):
        loaded(folder)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_with_a_head_give_what_the_library_gives(causal, tmp_path):
    folder = adapters_of(causal, tmp_path / "adapters", with_head=True, task="SEQ_CLS")

    one, other = loaded(folder, seed=0), loaded(folder, seed=1)

    assert_close(score_texts(one, TEXTS), score_texts(other, TEXTS), 0.0)
    head = load_file(folder / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert any(p.equal(head) for p in one.network.parameters())


def test_half_of_the_adapters_is_not_enough(tiny_reward_model, tmp_path):
    folder = saved(loaded(tiny_reward_model, lora=LoraConfig(rank=2)), tmp_path / "adapters")
    file = folder / "adapter_model.safetensors"
    weights = {n: w for n, w in load_file(file).items() if "layer.1" not in n or "lora_B" not in n}
    save_file(weights, file, metadata={"format": "pt"})

    with pytest.raises(InputError, match="adapters are missing from adapters") as caught:
        loaded(folder)

    assert "layer.1" in caught.value.problems[0]


def test_adapters_that_put_tokens_before_the_text_are_refused(tiny_reward_model, tmp_path):
    folder = saved(loaded(tiny_reward_model, lora=LoraConfig(rank=2)), tmp_path / "adapters")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "PROMPT_TUNING"}))

    with pytest.raises(InputError, match="adapters of kind PROMPT_TUNING put tokens before the te"):
        loaded(folder)


def renamed(weights: dict[str, Any]) -> None:
    weights["value_head.weight"] = weights.pop("score.weight")


@pytest.mark.parametrize("change", [lambda weights: None, renamed], ids=["score", "value_head"])
@pytest.mark.parametrize("architecture", ["LlamaForSequenceClassification", "LlamaModel"])
def test_openrlhfs_folders_are_reward_models(llama, tmp_path, change, architecture):
    folder = copied(llama, tmp_path / "model", architectures=[architecture])
    config = json.loads((folder / "config.json").read_text())
    for name in ("id2label", "label2id"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    with_weights(folder, change)

    model = loaded(folder)

    expected = score_texts(loaded(llama), TEXTS)
    # Where weights lie in a file may change how products are rounded.
    assert_close(score_texts(model, TEXTS), expected, 1e-7)
    export = saved(model, tmp_path / "export")
    assert "score.weight" in load_file(export / WEIGHTS)
    assert_close(score_texts(loaded(export), TEXTS), expected, 1e-6)
    with pytest.raises(InputError, match="has a score head already"):
        loaded(folder, new_head=True)


def more_layers(weights: dict[str, Any]) -> None:
    for name in [name for name in weights if ".layers.1." in name]:
        weights[name.replace(".layers.1.", ".layers.2.")] = weights[name].clone()


def another_head(weights: dict[str, Any]) -> None:
    weights["v_head.summary.weight"] = torch.zeros(1, 32)


@pytest.mark.parametrize(
    ("change", "left"),
    [(more_layers, "model.layers.2.input_layernorm.weight"), (another_head, "v_head.summary.wei")],
)
def test_weights_that_the_model_has_not_are_named(llama, tmp_path, change, left):
    folder = with_weights(copied(llama, tmp_path / "model"), change)

    with pytest.raises(InputError, match="weights that the model of config.json has not") as caught:
        loaded(folder)

    assert left in caught.value.problems[0]


def test_layers_above_num_layers_are_left_over_as_asked(llama, tmp_path):
    folder = with_weights(copied(llama, tmp_path / "model"), more_layers)

    model = loaded(folder, num_layers=2)

    assert_close(score_texts(model, TEXTS), score_texts(loaded(llama), TEXTS), 0.0)


def bare(kind: str, head: str, labels: int) -> Any:
    """A network of a family with another head than a score, or none."""
    import transformers

    settings = DECODERS | ENCODERS | {"t5": {**T5, "decoder_start_token_id": 0}}
    small = {"vocab_size": ROWS, "num_labels": labels, **SPECIAL, **settings[kind]}
    config = transformers.AutoConfig.for_model(kind, **small)
    with drawn_by(0):
        return getattr(transformers, head).from_config(config)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["all weights", "adapters"])
@pytest.mark.parametrize(
    ("kind", "head", "labels"),
    [
        ("distilbert", "AutoModel", 2),
        ("distilbert", "AutoModelForMaskedLM", 2),
        ("distilbert", "AutoModelForSequenceClassification", 5),
        ("bert", "AutoModelForSequenceClassification", 5),
        ("bert", "AutoModelForMaskedLM", 2),
        ("roberta", "AutoModel", 2),
        ("deberta-v2", "AutoModelForSequenceClassification", 5),
        ("xlnet", "AutoModel", 2),
        ("modernbert", "AutoModel", 2),
        ("modernbert", "AutoModelForMaskedLM", 2),
        ("gpt2", "AutoModelForCausalLM", 2),
        ("llama", "AutoModelForSequenceClassification", 5),
        ("t5", "AutoModelForSeq2SeqLM", 2),
    ],
)
def test_a_new_head_is_drawn_on_any_backbone_and_comes_back(
    tiny_backbone, tmp_path, kind, head, labels, lora
):
    folder = save_tiny(bare(kind, head, labels), tiny_backbone, tmp_path / "bare")
    vocabulary = {"max_length": 16, "renderer": "pair"}
    small_tokenizer(folder)

    model = loaded(folder, new_head=True, lora=lora, **vocabulary)
    other = loaded(folder, new_head=True, seed=1, **vocabulary)

    rewards = score_texts(model, TEXTS)
    assert np.abs(rewards - score_texts(other, TEXTS)).max() > 1e-4
    again = loaded(saved(model, tmp_path / "saved"), **vocabulary)
    assert_close(score_texts(again, TEXTS), rewards, 1e-5)


def small_tokenizer(folder: Path) -> None:
    """Fits the tokenizer to ROWS tokens, without token types and with an end token."""
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text())
    words = document["model"]["vocab"]
    document["model"]["vocab"] = {w: code for w, code in words.items() if code < ROWS}
    file.write_text(json.dumps(document))
    file = folder / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | names))


def test_a_model_that_cannot_recompute_is_refused_before_it_is_loaded(tiny_backbone, tmp_path):
    from transformers import MPNetConfig, MPNetForSequenceClassification

    network = MPNetForSequenceClassification(MPNetConfig(vocab_size=ROWS, num_labels=1, **USUAL))
    folder = save_tiny(network, tiny_backbone, tmp_path / "model")

    check_recomputes(tiny_backbone, ModelConfig(path=str(tiny_backbone)))
    with pytest.raises(InputError, match="train.gradient_checkpointing = true"):
        check_recomputes(folder, ModelConfig(path=str(folder)))


def test_loading_draws_nothing_from_the_global_stream(tiny_backbone):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)

    loaded(tiny_backbone, new_head=True, lora=LoraConfig(rank=2))

    assert torch.rand(3).equal(expected)


# Files


def sharded(source: Path, folder: Path, below: str) -> Path:
    """A copy whose weights lie in two files below `below`, told by an index."""
    shutil.copytree(source, folder)
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    places = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = folder / below / f"part-{number}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: weights[name] for name in part}, file, metadata={"format": "pt"})
        places |= {name: f"{below}/{file.name}" for name in part}
    index = {"metadata": {}, "weight_map": places}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    return folder


def fingerprint(folder: Path) -> str:
    return model_fingerprint(folder, ModelConfig(path=str(folder)))


def test_the_fingerprint_follows_the_index(tiny_reward_model, tmp_path):
    folder = sharded(tiny_reward_model, tmp_path / "model", "shards/here")
    expected, before = score_texts(loaded(tiny_reward_model), TEXTS), fingerprint(folder)

    assert_close(score_texts(loaded(folder), TEXTS), expected, 1e-7)
    part = folder / "shards/here/part-1.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    assert fingerprint(folder) != before


@pytest.mark.parametrize(
    "name", ["generation_config.json", "training_config.json", "x.safetensors"]
)
def test_other_files_decide_nothing(tiny_reward_model, tmp_path, name):
    folder = copied(tiny_reward_model, tmp_path / "model")
    before = fingerprint(folder)

    (folder / name).write_text('{"a": 1}')

    assert fingerprint(folder) == before


@pytest.mark.parametrize("place", ["../outside/a.safetensors", "/tmp/a.safetensors"])
def test_an_index_that_points_out_of_the_folder_is_refused(tiny_reward_model, tmp_path, place):
    folder = sharded(tiny_reward_model, tmp_path / "model", "shards")
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(re.sub(r"shards/part-1\.safetensors", place, index.read_text()))

    with pytest.raises(InputError, match="points out of its folder") as caught:
        loaded(folder)

    assert caught.value.problems == (place,)


# Pickles


def pickled(source: Path, folder: Path) -> Path:
    """A model as the hub's cache holds it, its weights a pickle: links to files named by hash."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(source.iterdir())):
        if path.name == WEIGHTS:
            torch.save(load_file(path), blobs / str(number))
            name = "pytorch_model.bin"
        else:
            shutil.copyfile(path, blobs / str(number))
            name = path.name
        (snapshot / name).symlink_to(Path("../../blobs") / str(number))
    return snapshot


def converted(folder: Path, cache: Path, **settings: Any) -> Path:
    return resolve_model_dir(ModelConfig(path=str(folder), **settings), cache)


def test_a_pickle_is_read_where_it_is_asked_for_alone(tiny_reward_model, tmp_path):
    snapshot = pickled(tiny_reward_model, tmp_path / "hub")
    with pytest.raises(InputError, match="found only pickle files") as caught:
        converted(snapshot, tmp_path / "cache")
    assert "or set model.convert_pickle to true" in caught.value.problems[1]
    assert not (tmp_path / "cache").exists()

    folder = converted(snapshot, tmp_path / "cache", convert_pickle=True)

    assert folder.is_relative_to(tmp_path / "cache")
    expected = score_texts(loaded(tiny_reward_model), TEXTS)
    assert_close(score_texts(loaded(folder), TEXTS), expected, 0.0)
    assert conversion_record(folder).keys() == {"pickle", "safetensors"}
    assert conversion_record(tiny_reward_model) == {}


def test_a_pickle_is_read_once_and_anew_when_the_copy_is_damaged(
    tiny_reward_model, tmp_path, caplog
):
    snapshot = pickled(tiny_reward_model, tmp_path / "hub")
    folder = converted(snapshot, tmp_path / "cache", convert_pickle=True)
    whole, made = (folder / WEIGHTS).read_bytes(), (folder / WEIGHTS).stat().st_mtime_ns

    converted(snapshot, tmp_path / "cache", convert_pickle=True)
    assert (folder / WEIGHTS).stat().st_mtime_ns == made
    (folder / WEIGHTS).write_bytes(whole[:-1] + b"\0\1"[:1])
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    converted(snapshot, tmp_path / "cache", convert_pickle=True)

    assert (folder / WEIGHTS).read_bytes() == whole
    assert "the converted weights are damaged; they are made anew" in caplog.text


@pytest.fixture
def adapters_on_a_pickle(tiny_reward_model, tmp_path, monkeypatch) -> tuple[Path, Any]:
    """Adapters whose base is a model of the hub, which its cache holds as a pickle alone; and
    their rewards."""
    import huggingface_hub.constants

    model = loaded(tiny_reward_model, lora=LoraConfig(rank=2))
    train_a_little(model)
    folder, hub = saved(model, tmp_path / "adapters"), tmp_path / "hub" / "models--a--base"
    (folder / "scpo_model.json").unlink()
    pickled(tiny_reward_model, hub)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub.parent))
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "a/base"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder, score_texts(model, TEXTS)


def test_the_base_of_adapters_may_be_a_pickle_where_that_is_asked_for(
    adapters_on_a_pickle, tmp_path
):
    folder, rewards = adapters_on_a_pickle
    config = ModelConfig(path=str(folder), max_length=48)
    with pytest.raises(InputError, match="model.path = a/base: .* found only pickle files"):
        _ = open_global_model(
            config, Stores(tmp_path / "cache"), device="cpu", precision="fp32"
        ).fingerprint
    config = config.model_copy(update={"convert_pickle": True})
    stores = Stores(tmp_path / "cache")

    base = open_global_model(config, stores, device="cpu", precision="fp32")

    check_recomputes(base.model_dir, config, stores.converted)
    model = base.frozen()
    assert_close(score_texts(model, TEXTS), rewards, 1e-6)
    assert base.conversion.keys() == {"pickle", "safetensors"}
    assert len(base.fingerprint) == 64
    # What is trained from it names the converted base, which needs no leave to be read.
    again = load_exported(saved(model, tmp_path / "trained"), device="cpu")
    assert_close(score_texts(again, TEXTS), rewards, 1e-6)


class Runs:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    "content",
    [lambda marker: Runs(marker), lambda marker: {"a": 1, "b": torch.ones(1)}, lambda marker: {}],
    ids=["code", "more than tensors", "nothing"],
)
def test_a_pickle_of_anything_but_weights_is_refused_and_runs_nothing(
    tiny_reward_model, tmp_path, content
):
    snapshot, marker = pickled(tiny_reward_model, tmp_path / "hub"), tmp_path / "marker"
    file = (snapshot / "pytorch_model.bin").resolve()
    if isinstance(content(marker), Runs):
        file.write_bytes(pickle.dumps(content(marker)))
    else:
        torch.save(content(marker), file)

    with pytest.raises(InputError, match="pytorch_model.bin"):
        converted(snapshot, tmp_path / "cache", convert_pickle=True)

    assert not marker.exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


# Exports


def test_an_export_holds_nothing_that_only_the_newest_library_knows(llama, tmp_path):
    model = loaded(llama, max_length=24)
    model.renderer.encode(TEXTS)  # which may leave a truncation in the tokenizer

    folder = saved(model, tmp_path / "export")

    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    assert (tokenizer["truncation"], tokenizer["padding"]) == (None, None)
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["chat_template"] == CHAT_TEMPLATE
    assert not {"is_local", "local_files_only", "extra_special_tokens"} & settings.keys()
    assert not (folder / "chat_template.jinja").exists()
    assert (config["rope_theta"], config["rope_scaling"]) == (10_000.0, None)
    assert config["pad_token_id"] == json.loads((llama / "config.json").read_text())["pad_token_id"]


def test_scaled_positions_come_back_from_an_export(tiny_backbone, tmp_path):
    from transformers import LlamaForSequenceClassification

    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
    with drawn_by(0):
        network = LlamaForSequenceClassification(
            tiny_llama_config(num_labels=1, rope_parameters=rope)
        )
    source = save_tiny(network, tiny_backbone, tmp_path / "source")
    model = loaded(source)

    folder = saved(model, tmp_path / "export")

    config = json.loads((folder / "config.json").read_text())
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert config["rope_theta"] == 500.0
    assert_close(score_texts(loaded(folder), TEXTS), score_texts(model, TEXTS), 1e-6)


def test_any_reward_model_is_loaded_by_its_own_files(tiny_reward_model, tmp_path):
    folder = copied(tiny_reward_model, tmp_path / "theirs")
    (folder / "scpo_model.json").unlink()
    config = ModelConfig(path=str(folder), max_length=48)

    model = load_reward_model(folder, config, load_renderer(folder, config), device="cpu", seed=0)

    assert_close(score_texts(model, TEXTS), score_texts(loaded(tiny_reward_model), TEXTS), 0.0)


def test_weights_without_room_are_refused_with_the_numbers():
    shapes = {"score.weight": (1, 4_096), "body.weight": (10**6, 4_096)}

    check_weights_fit(shapes, 0, ModelConfig(dtype="bfloat16"), 10 * 10**9)
    with pytest.raises(InputError, match=r"need 16.4 GB in float32, and 10.0 GB are free"):
        check_weights_fit(shapes, 0, ModelConfig(dtype="float32"), 10 * 10**9)
