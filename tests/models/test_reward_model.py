"""Reward models: what loads, what is refused, and that a saved one gives the same rewards."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from scpo_ray.data.synthetic import vocabulary
from scpo_ray.models.export import load_exported, model_section, save_reward_model
from scpo_ray.models.files import model_fingerprint, resolve_model_dir
from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.rendering import load_renderer
from scpo_ray.models.reward_model import RewardModel, resolve_device
from scpo_ray.models.scoring import score_texts, score_tokens
from scpo_ray.records import ALONE, InputError, Text
from scpo_ray.settings.model import ModelConfig
from scpo_ray.settings.train import TrainConfig
from scpo_ray.training.engine import TorchEngine
from scpo_ray.training.loss import bradley_terry_losses, pair_margins, weighted_loss
from tests.models.test_rendering import CHAT_TEMPLATE, changed_tokenizer

HEAD = ("classifier.weight", "classifier.bias")
TEXTS = [
    Text((), " ".join(vocabulary()[start : start + prompt]), " ".join(vocabulary()[-reply:]))
    for start, (prompt, reply) in enumerate([(3, 2), (1, 30), (12, 9), (1, 1), (20, 20), (5, 4)])
]


def loaded(folder: Path, *, seed: int = 0, **settings) -> RewardModel:
    config = ModelConfig(path=str(folder), **{"max_length": 48} | settings)
    model_dir = resolve_model_dir(config)
    renderer = load_renderer(model_dir, config)
    return load_reward_model(model_dir, config, renderer, device="cpu", seed=seed)


def save_tiny(
    network: torch.nn.Module, tokenizer: Path, folder: Path, **tokenizer_settings
) -> Path:
    """A model's folder: the network, and a tokenizer copied from another folder."""
    network.save_pretrained(folder)
    own = folder / "config.json"
    content = own.read_bytes()
    weights = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder)
    changed_tokenizer(tokenizer, folder, **tokenizer_settings)
    own.write_bytes(content)
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def tiny_llama_config(**settings):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(vocabulary()) + 4,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        **settings,
    )


@pytest.fixture(scope="session")
def tiny_llama(tiny_backbone, tmp_path_factory) -> Path:
    """A decoder reward model whose tokenizer has a chat template."""
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    network = LlamaForSequenceClassification(tiny_llama_config(num_labels=1))
    folder = tmp_path_factory.mktemp("models") / "llama"
    return save_tiny(network, tiny_backbone, folder, chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def tiny_causal(tiny_backbone, tmp_path_factory) -> Path:
    """A language model: no score head."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "causal"
    network = LlamaForCausalLM(tiny_llama_config())
    return save_tiny(network, tiny_backbone, folder, chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def tiny_deberta(tiny_backbone, tmp_path_factory) -> Path:
    from transformers import DebertaV2ForSequenceClassification

    torch.manual_seed(0)
    network = DebertaV2ForSequenceClassification(deberta_config())
    return save_tiny(network, tiny_backbone, tmp_path_factory.mktemp("models") / "deberta")


@pytest.fixture(scope="session")
def tiny_deberta_backbone(tiny_backbone, tmp_path_factory) -> Path:
    """Without head and without pooler: both are drawn when a head is put on it."""
    from transformers import DebertaV2Model

    torch.manual_seed(0)
    network = DebertaV2Model(deberta_config())
    return save_tiny(network, tiny_backbone, tmp_path_factory.mktemp("models") / "deberta-body")


def deberta_config():
    from transformers import DebertaV2Config

    return DebertaV2Config(
        vocab_size=len(vocabulary()) + 4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
        type_vocab_size=0,
        num_labels=1,
    )


@pytest.fixture
def folders(
    tiny_reward_model,
    tiny_backbone,
    tiny_llama,
    tiny_causal,
    tiny_deberta,
    tiny_deberta_backbone,
):
    return {
        "bert": tiny_reward_model,
        "bert backbone": tiny_backbone,
        "llama": tiny_llama,
        "causal llama": tiny_causal,
        "deberta": tiny_deberta,
        "deberta backbone": tiny_deberta_backbone,
    }


def train_a_little(model: RewardModel, steps: int = 3) -> None:
    """A few large optimizer steps, so that what is not saved shows."""
    config = TrainConfig(learning_rate=1e-2, max_steps=steps, dropout=False)
    engine = TorchEngine(model, config, ALONE)
    inputs = model.batch(model.renderer.encode(TEXTS), np.arange(len(TEXTS)))
    pairs = torch.tensor([[0, 1], [2, 3], [4, 5]])
    for _ in range(steps):
        losses = bradley_terry_losses(pair_margins(engine.rewards(inputs), pairs))
        loss = weighted_loss(losses, torch.ones(3), normalizer=3.0)
        engine.backward(loss, last=True)
        engine.step()


def saved(model: RewardModel, folder: Path) -> Path:
    folder.mkdir()
    save_reward_model(model, folder)
    return folder


def assert_close(ours: NDArray[np.float32], theirs: NDArray[np.float32], tolerance: float) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["bert", "llama", "deberta"])
def test_rewards_do_not_depend_on_batch_size_neighbours_or_order(folders, name):
    model = loaded(folders[name])
    tokens = model.renderer.encode(TEXTS)

    together = score_texts(model, TEXTS)

    alone = np.concatenate([score_texts(model, [text]) for text in TEXTS])
    small = score_tokens(RewardModel(model.network, model.renderer, "cpu", 96), tokens)
    backwards = score_tokens(model, tokens, text_ids=np.arange(len(TEXTS))[::-1])[::-1]
    assert len(np.unique(together)) == len(TEXTS)
    for rewards in (alone, small, backwards):
        assert_close(rewards, together, 1e-4)


def test_neighbours_do_not_matter_where_padding_is_the_end_token(tiny_llama, tmp_path):
    folder = changed_tokenizer(tiny_llama, tmp_path / "model", pad_token=None, eos_token="[SEP]")
    model = loaded(folder)

    assert model.renderer.pad_id == 3
    alone = np.concatenate([score_texts(model, [text]) for text in TEXTS])
    assert_close(alone, score_texts(model, TEXTS), 1e-4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bert", {}),
        ("llama", {}),
        ("deberta", {}),
        ("bert", {"num_layers": 1}),
        ("bert backbone", {"new_head": True}),
        ("causal llama", {"new_head": True, "num_layers": 1}),
    ],
)
def test_a_trained_model_saved_and_loaded_again_gives_the_same_rewards(
    folders, tmp_path, name, settings
):
    model = loaded(folders[name], **settings)
    before = score_texts(model, TEXTS)
    train_a_little(model)
    rewards = score_texts(model, TEXTS)

    again = load_exported(saved(model, tmp_path / "model"), device="cpu")

    assert np.abs(rewards - before).max() > 1e-3
    assert_close(score_texts(again, TEXTS), rewards, 1e-6)


def test_what_a_model_may_do_on_this_machine_is_the_loading_runs_word(tiny_reward_model):
    other = ModelConfig(
        path="other", max_length=8, trust_remote_code=True, inference_batch_tokens=512
    )

    section = model_section(tiny_reward_model, other)

    assert (section.trust_remote_code, section.inference_batch_tokens) == (True, 512)
    assert (section.path, section.max_length) == (str(tiny_reward_model), 48)
    model = load_exported(tiny_reward_model, device="cpu", config=other)
    assert model.batch_tokens == 512


def test_num_layers_keeps_the_bottom_layers_and_changes_the_fingerprint(tiny_reward_model):
    model = loaded(tiny_reward_model, num_layers=1)

    config = ModelConfig(path=str(tiny_reward_model))
    fewer = config.model_copy(update={"num_layers": 1})
    assert len(model.network.bert.encoder.layer) == 1
    assert np.abs(score_texts(model, TEXTS) - score_texts(loaded(tiny_reward_model), TEXTS)).any()
    assert model_fingerprint(tiny_reward_model, config) != model_fingerprint(
        tiny_reward_model, fewer
    )


def test_more_layers_than_there_are_is_refused(tiny_reward_model):
    with pytest.raises(InputError, match="model.num_layers = 3: .* has 2 layers"):
        loaded(tiny_reward_model, num_layers=3)


def test_a_causal_model_without_score_head_is_refused_until_one_is_asked_for(tiny_causal):
    with pytest.raises(InputError) as caught:
        loaded(tiny_causal)

    assert "LlamaForCausalLM has no score head" in caught.value.title
    assert caught.value.problems == (
        "set model.new_head to true to train a new head on it (method finetune)",
    )
    assert np.isfinite(score_texts(loaded(tiny_causal, new_head=True), TEXTS)).all()


def copied(source: Path, folder: Path, **config_changes) -> Path:
    shutil.copytree(source, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config_changes))
    return folder


def test_a_head_of_two_rows_is_refused(tiny_reward_model, tmp_path):
    folder = copied(tiny_reward_model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights |= {name: weights[name].repeat(2, *[1] * (weights[name].dim() - 1)) for name in HEAD}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(InputError, match="a reward model has 1 score, this one has 2"):
        loaded(folder)


@pytest.mark.parametrize("weight", ["bert.encoder.layer.1.output.dense.weight", "classifier.bias"])
def test_missing_weights_are_named(tiny_reward_model, tmp_path, weight):
    folder = copied(tiny_reward_model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights[weight]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(InputError) as caught:
        loaded(folder)

    assert caught.value.title == f"model.path = {folder}: weights are missing from the files"
    assert caught.value.problems == (weight,)


def test_a_new_head_does_not_excuse_a_missing_body(tiny_backbone, tmp_path):
    folder = copied(tiny_backbone, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(InputError, match="more than the score head is missing") as caught:
        loaded(folder, new_head=True)

    assert "encoder.layer.1.output.dense.weight" in caught.value.problems[0]


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    "spoil",
    [
        cut_in_half,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\xff" * 4_096),
        lambda file: save_file(
            {k: v[..., :-1].contiguous() for k, v in load_file(file).items()},
            file,
            metadata={"format": "pt"},
        ),
    ],
    ids=["cut in half", "empty", "garbage", "other shapes"],
)
def test_unusable_weights_are_refused_in_one_line(tiny_reward_model, tmp_path, spoil):
    folder = copied(tiny_reward_model, tmp_path / "model")
    spoil(folder / "model.safetensors")

    with pytest.raises(InputError) as caught:
        loaded(folder)

    assert caught.value.title == f"model.path = {folder}: the weights cannot be loaded"
    [reason] = caught.value.problems
    assert reason and "\n" not in reason


@pytest.mark.parametrize("content", ["{", '{"model_type": "nothing"}', "[]"])
def test_a_config_that_is_no_config_is_refused(tiny_reward_model, tmp_path, content):
    folder = copied(tiny_reward_model, tmp_path / "model")
    (folder / "config.json").write_text(content)

    with pytest.raises(InputError) as caught:
        loaded(folder)

    assert str(folder) in caught.value.title
    assert len(caught.value.problems) == 1


def test_pickle_weights_are_refused(tiny_reward_model, tmp_path):
    folder = copied(tiny_reward_model, tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    with pytest.raises(InputError) as caught:
        loaded(folder)

    assert caught.value.title == (
        f"model.path = {folder}: weights must be safetensors, "
        "found only pickle files (pytorch_model.bin), which can run code"
    )


def test_a_folder_without_weights_or_config_is_refused(tmp_path):
    with pytest.raises(InputError, match="no config.json in it"):
        resolve_model_dir(ModelConfig(path=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="weights must be safetensors, found none"):
        resolve_model_dir(ModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize("path", ["nobody/has-such-a-model", "/nowhere/model", "a b c", "x/y/z"])
def test_a_model_that_is_nowhere_is_refused(path):
    with pytest.raises(InputError) as caught:
        resolve_model_dir(ModelConfig(path=path))

    assert caught.value.title == (
        f"model.path = {path}: neither a folder nor a hub model that can be fetched"
    )


def test_a_folder_that_was_not_saved_here_is_no_export(tiny_backbone):
    with pytest.raises(InputError, match="not a model saved here: no readable scpo_model.json"):
        load_exported(tiny_backbone, device="cpu")


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert resolve_device("auto") == "cpu"
    with pytest.raises(InputError, match="device = cuda: this machine has no CUDA device"):
        resolve_device("cuda")


def test_a_new_head_on_a_reward_model_is_refused(tiny_reward_model):
    with pytest.raises(InputError, match="has a score head already"):
        loaded(tiny_reward_model, new_head=True)


def test_more_tokens_than_the_model_has_positions_are_refused(tiny_reward_model):
    with pytest.raises(InputError, match="model.max_length = 129: .* reads at most 128 tokens"):
        loaded(tiny_reward_model, max_length=129)


def test_relative_positions_have_no_last_one(tiny_deberta):
    assert np.isfinite(score_texts(loaded(tiny_deberta, max_length=400), TEXTS)).all()
