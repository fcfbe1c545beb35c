"""Rendered dialogues back into turns, by families of templates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.records import InputError, Text
from scpo_ray.serve.dialogues import continued, sample_of, turns_of, without_ends

TEMPLATES = {
    "chatml": ("<|im_start|>{role}\n{said}<|im_end|>\n", "<|im_start|>assistant\n"),
    "llama3": (
        "<|start_header_id|>{role}<|end_header_id|>\n\n{said}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "gemma": ("<start_of_turn>{role}\n{said}<end_of_turn>\n", "<start_of_turn>model\n"),
    "tulu": ("<|{role}|>\n{said}\n", "<|assistant|>\n"),
    "transcript": ("\n\n{role}: {said}", "\n\nAssistant:"),
}
NAMES = {"gemma": {"assistant": "model"}, "transcript": {"user": "Human", "assistant": "Assistant"}}

# Without what templates are made of, and as people write: no blanks around.
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<>[]:|"), min_size=1).filter(
    lambda text: text == text.strip() and "\n" not in text and text.isprintable()
)


def rendered(family: str, turns: list[tuple[str, str]], *, asks: bool = False) -> str:
    turn, opening = TEMPLATES[family]
    names = NAMES.get(family, {})
    said = [turn.format(role=names.get(role, role), said=text) for role, text in turns]
    return "".join([*said, opening if asks else ""])


@pytest.mark.parametrize("family", TEMPLATES)
@given(said=st.lists(WORDS, min_size=2, max_size=6).filter(lambda found: len(found) % 2 == 0))
def test_a_rendered_dialogue_gives_its_turns_back(family, said):
    turns = [(("user", "assistant")[n % 2], text) for n, text in enumerate(said)]

    assert turns_of(rendered(family, turns)) == tuple(turns)


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_query_is_its_prompt_and_what_the_policy_went_on_with(family):
    asked = rendered(family, [("user", "one"), ("assistant", "two"), ("user", "three")], asks=True)
    query = f"{asked} four</s>"

    found = continued(query, asked, "query.0")

    assert found == Text((("user", "one"), ("assistant", "two")), "three", "four")


def test_a_plain_prompt_is_taken_off_a_plain_query():
    assert continued("Why? Because.<|endoftext|>", "Why?", "query.0") == Text(
        (), "Why?", "Because."
    )


def test_a_query_that_does_not_begin_with_its_prompt_is_read_by_its_marks():
    query = rendered("chatml", [("user", "Why?"), ("assistant", "Because.")])

    assert continued(query, "something else", "query.0") == Text((), "Why?", "Because.")


def test_instructions_in_brackets_are_turns():
    text = "<s>[INST] one [/INST] two</s>[INST] three [/INST] four</s>"

    assert sample_of(text, "text") == Text((("user", "one"), ("assistant", "two")), "three", "four")


@pytest.mark.parametrize("end", ["</s>", "<|im_end|>\n", "<eos><pad><pad>", " <|endoftext|> "])
def test_special_tokens_at_the_end_are_taken_off(end):
    assert without_ends(f"<s> text{end}") == "text"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no marks at all", "no template's marks"),
        ("<|im_start|>user\nalone<|im_end|>", "must end with an assistant's turn"),
        ("<|im_start|>assistant\nalone<|im_end|>", "must end with an assistant's turn"),
        ("", "no template's marks"),
    ],
)
def test_a_text_without_prompt_and_response_is_refused(text, said):
    with pytest.raises(InputError, match=f"input.3: .*{said}"):
        sample_of(text, "input.3")


def test_a_long_text_of_marks_is_read_in_no_time():
    text = "<|im_start|>user\n" + "<|im_end|> " * 100_000 + "[INST]" * 100_000

    assert turns_of(text) == (("user", ""),)
