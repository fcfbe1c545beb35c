"""A transformer small enough to train from scratch in seconds, for the quickstart and tests."""

from collections.abc import Sequence
from pathlib import Path

from scpo_ray.models.loading import drawn_by
from scpo_ray.models.rendering import quiet_transformers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def make_tiny_backbone(folder: Path, words: Sequence[str], *, seed: int) -> None:
    """Writes a two-layer BERT without a score head, and a word-level tokenizer, to `folder`.

    Args:
        words: the vocabulary, lower case; every other word is unknown to it.
        seed: of the first weights.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    quiet_transformers()
    vocabulary = {word: code for code, word in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    with drawn_by(seed):
        BertModel(
            BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=128,
                max_position_embeddings=128,
            )
        ).save_pretrained(folder)
