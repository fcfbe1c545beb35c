"""The reward is what transformers gives to a text alone, with the folder as it was saved."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scpo_ray.models.export import write_weights
from scpo_ray.models.loading import drawn_by
from scpo_ray.models.packing import fit_for_rows
from scpo_ray.models.reading import ScoredNetwork, check_reading, check_tokens, filler_id
from scpo_ray.models.reward_model import RewardModel, turn_off_dropout
from scpo_ray.models.scoring import score_texts
from scpo_ray.records import InputError, Tokens, Worker
from scpo_ray.settings.train import TrainConfig
from scpo_ray.training.deepspeed_engine import DeepSpeedEngine
from scpo_ray.training.optimization import prepare_network
from tests.group import Groups
from tests.models.test_rendering import CHAT_TEMPLATE
from tests.models.test_reward_model import TEXTS, loaded, save_tiny, tiny_llama_config

PAD, BOS, END, ROWS = 0, 2, 3, 40

SPECIAL = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": END}
USUAL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.3,
}
GROUPED = {**USUAL, "num_key_value_heads": 1}
SHORT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
LAYERS = {"hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
HALF = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
SPLIT = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "init_std": 0.3,
    "dropout": 0.5,
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.5}

# Model type -> settings of a network of a few hundred weights, dropout at a half where it has any.
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {**GROUPED, "attention_dropout": 0.5},
    "qwen2": {**GROUPED, "attention_dropout": 0.5},
    "mistral": {**GROUPED, "attention_dropout": 0.5},
    "mixtral": {**GROUPED, "num_local_experts": 2, "router_jitter_noise": 0.5},
    "gemma": {**GROUPED, "head_dim": 8, "attention_dropout": 0.5},
    "gpt_neox": {**USUAL, "hidden_dropout": 0.5, "attention_dropout": 0.5},
    "gpt2": {**SHORT, "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "ctrl": {**SHORT, "dff": 24, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "opt": {
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "dropout": 0.5,
        "layerdrop": 0.5,
        "init_std": 0.3,
    },
    "bloom": {**LAYERS, "hidden_dropout": 0.5, "attention_dropout": 0.5},
    "falcon": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_dropout": 0.5,
        "attention_dropout": 0.5,
        "initializer_range": 0.3,
    },
    "phi": {**USUAL, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {**USUAL, **HALF},
    "roberta": {**USUAL, **HALF},
    "deberta-v2": {
        **USUAL,
        **HALF,
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
    },
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "dropout": 0.5},
    "electra": {**USUAL, **HALF, "embedding_size": 16},
    "albert": {**USUAL, **HALF, "embedding_size": 16},
    "modernbert": {
        **USUAL,
        "attention_dropout": 0.5,
        "mlp_dropout": 0.5,
        "cls_token_id": BOS,
        "sep_token_id": END,
    },
    "xlnet": {
        "d_model": 16,
        "n_layer": 2,
        "n_head": 2,
        "d_inner": 24,
        "dropout": 0.5,
        "initializer_range": 0.3,
    },
}
WITH_DECODERS: dict[str, dict[str, Any]] = {"bart": SPLIT, "mbart": SPLIT, "t5": T5, "umt5": T5}
FAMILIES = DECODERS | ENCODERS | WITH_DECODERS


def network_of(kind: str, **settings: Any) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    starts = {"decoder_start_token_id": PAD} if kind in WITH_DECODERS else {}
    own = FAMILIES.get(kind, {})
    config = AutoConfig.for_model(
        kind,
        **{
            "vocab_size": ROWS,
            "num_labels": 1,
            **SPECIAL,
            **starts,
            **own,
            **settings,
        },
    )
    with drawn_by(0):
        return AutoModelForSequenceClassification.from_config(config).eval()


def tokens_of(*texts: list[int], types: list[int] | None = None) -> Tokens:
    return Tokens(
        input_ids=np.concatenate(texts).astype(np.int32),
        token_type_ids=None if types is None else np.array(types, dtype=np.int8),
        offsets=np.cumsum([0, *map(len, texts)]).astype(np.int64),
        truncated=np.zeros(len(texts), dtype=np.bool_),
    )


# Of lengths 9, 4 and 6, each closed by the end token; the last has the pad token inside.
SAID = [[5, 6, 7, 8, 9, 10, 11, 12, END], [13, 14, 15, END], [20, 21, PAD, 22, 23, END]]


@torch.no_grad()
def alone(network: nn.Module, text: list[int]) -> float:
    ids = torch.tensor([text])
    return network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.item()


@torch.no_grad()
def together(network: nn.Module, texts: list[list[int]]) -> list[float]:
    tokens = tokens_of(*texts)
    return (
        RewardModel(network, None, "cpu", 99)
        .rewards(RewardModel(network, None, "cpu", 99).batch(tokens, np.arange(len(texts))))
        .tolist()
    )


@pytest.mark.parametrize("pad_id", [PAD, END, None], ids=["own", "the end token", "none"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_padded_batch_is_read_as_transformers_reads_each_text_alone(kind, pad_id):
    if pad_id is None and kind in WITH_DECODERS:
        pytest.skip("transformers itself needs their pad token")
    network = network_of(kind)
    network.config.pad_token_id = pad_id

    rewards = together(network, SAID)

    assert len(set(rewards)) == 3
    assert rewards == pytest.approx([alone(network, text) for text in SAID], abs=1e-5)
    assert network.config.pad_token_id == pad_id


@pytest.mark.parametrize("lora", [None, 2])
@pytest.mark.parametrize(
    ("config_pad", "tokenizer"),
    [
        (0, {"pad_token": "[PAD]"}),
        (0, {"pad_token": None}),
        (None, {"pad_token": None}),
        (None, {"pad_token": "[SEP]"}),
        (3, {"pad_token": "[SEP]"}),
        (0, {"pad_token": "[SEP]", "padding_side": "left"}),
    ],
)
def test_the_tokenizers_pad_token_and_side_decide_no_reward(
    tiny_backbone, tmp_path, config_pad, tokenizer, lora
):
    from transformers import LlamaForSequenceClassification

    from scpo_ray.settings.model import LoraConfig

    with drawn_by(0):
        network = LlamaForSequenceClassification(tiny_llama_config(num_labels=1)).eval()
    network.config.pad_token_id = config_pad
    folder = save_tiny(
        network,
        tiny_backbone,
        tmp_path / "llama",
        chat_template=CHAT_TEMPLATE,
        eos_token="[SEP]",
        **tokenizer,
    )

    # New adapters change nothing before they are trained.
    model = loaded(folder, lora=None if lora is None else LoraConfig(rank=lora))

    tokens = model.renderer.encode(TEXTS)
    bounds = zip(tokens.offsets, tokens.offsets[1:], strict=False)
    expected = [alone(network, tokens.input_ids[a:b].tolist()) for a, b in bounds]
    assert score_texts(model, TEXTS).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_network_that_padding_changes_is_refused():
    from transformers import FNetConfig, FNetForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24}
    with drawn_by(0):
        network = FNetForSequenceClassification(
            FNetConfig(vocab_size=ROWS, num_labels=1, initializer_range=0.3, **sizes)
        ).eval()

    with pytest.raises(InputError, match="FNet.* gives a text another reward when it is padded"):
        check_reading(ScoredNetwork(network))


def test_a_model_that_reads_at_the_end_token_refuses_a_text_without_one():
    network = network_of("bart")

    with pytest.raises(InputError, match=r"reads its reward at the end token \(id 3\)"):
        together(network, [[5, 6, 7]])


def test_what_fills_a_batch_is_a_token_that_the_network_has():
    network = network_of("llama")
    network.config.pad_token_id = ROWS  # one row more than there are

    assert filler_id(network) == 0
    assert together(network, SAID) == pytest.approx([alone(network, t) for t in SAID], abs=1e-5)


def test_tokens_and_types_beyond_the_tables_are_one_message():
    network = network_of("roberta", type_vocab_size=1)
    check_tokens(network, tokens_of([1, ROWS - 1], types=[0, 0]))

    with pytest.raises(InputError, match="the tokenizer does not fit the model") as caught:
        check_tokens(network, tokens_of([1, ROWS], types=[0, 1]))

    assert caught.value.problems == (
        "token 40; the model has 40, from 0 on",
        "token type 1; the model has 1, from 0 on "
        "(model_input_names in tokenizer_config.json says whether types are given)",
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", FAMILIES)
def test_dropout_off_is_off_in_every_family_and_the_config_keeps_its_rates(kind, checkpointing):
    network = network_of(kind)
    if checkpointing and not network.supports_gradient_checkpointing:
        pytest.skip("this family cannot")
    before = network.config.to_dict()
    model = RewardModel(network, None, "cpu", 99)
    batch = model.batch(tokens_of(*SAID), np.arange(3))
    prepare_network(model, TrainConfig(dropout=False, gradient_checkpointing=checkpointing))

    with torch.random.fork_rng():
        one, other = model.rewards(batch), model.rewards(batch)

    assert network.training
    assert torch.equal(one, other)
    assert network.config.to_dict() == before


def test_a_family_that_cannot_recompute_activations_is_refused():
    from transformers import MPNetConfig, MPNetForSequenceClassification

    network = MPNetForSequenceClassification(MPNetConfig(vocab_size=ROWS, num_labels=1, **USUAL))
    model = RewardModel(network, None, "cpu", 99)

    with pytest.raises(InputError, match="train.gradient_checkpointing = true") as caught:
        prepare_network(model, TrainConfig(gradient_checkpointing=True))

    assert "does not support" in caught.value.problems[0]


@pytest.mark.parametrize("in_rows", [False, True])
@pytest.mark.parametrize("kind", ["llama", "bert", "roberta", "deberta-v2", "t5"])
def test_under_bf16_the_rewards_are_float32_and_no_head_is_rounded(kind, in_rows):
    network = network_of(kind)
    exact = RewardModel(network, None, "cpu", 99)
    if in_rows and not fit_for_rows(exact.scored):
        pytest.skip("padded")
    model = replace(exact, precision="bf16", in_rows=in_rows)
    batch = model.batch(tokens_of(*SAID), np.arange(3))

    with torch.no_grad():
        rewards = model.rewards(batch)

    assert rewards.dtype == torch.float32
    assert not torch.equal(rewards, rewards.bfloat16().float())
    expected = torch.tensor([alone(network, text) for text in SAID])
    assert not torch.equal(rewards, expected)
    torch.testing.assert_close(rewards, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", ["llama", "bert", "bart"])
def test_features_times_the_head_are_the_rewards(kind):
    from scpo_ray.models.reading import score_head

    network = network_of(kind)
    model = RewardModel(network, None, "cpu", 99)
    batch = model.batch(tokens_of(*SAID), np.arange(3))

    with torch.no_grad():
        features, rewards = model.features(batch), model.rewards(batch)
        _, head = score_head(network)
        product = head(features).squeeze(-1)

    assert features.shape == (3, 16)
    torch.testing.assert_close(product, rewards, rtol=0, atol=1e-6)


def export_from_zero_3(worker: Worker, folder: str) -> list[str]:
    network = network_of("t5")
    config = TrainConfig(engine="deepspeed", zero_stage=3)
    engine = DeepSpeedEngine(RewardModel(network, None, "cpu", 99), config, worker)
    weights = dict(engine.divided_weights())
    write_weights(network, Path(folder), weights.items(), shard_bytes=2_000)
    return list(weights)


@pytest.mark.slow
def test_a_weight_with_two_names_is_exported_from_zero_3(tmp_path: Path):
    from transformers import T5ForSequenceClassification

    with Groups() as groups:
        [names] = groups.run(1, export_from_zero_3, str(tmp_path))

    assert len([name for name in names if "embed_tokens" in name or "shared" in name]) == 1
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    again = T5ForSequenceClassification.from_pretrained(tmp_path).state_dict()
    before = network_of("t5").state_dict()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], value) for name, value in before.items())


def test_turning_dropout_off_twice_is_turning_it_off():
    network = network_of("falcon")
    turn_off_dropout(network)
    turn_off_dropout(network)

    assert network.config.hidden_dropout == 0.5
    assert network.transformer.h[0].config.hidden_dropout == 0.0
