"""Chat templates: what they write stays, what people say gives way, and no day is today."""

import logging
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import transformers.utils.chat_template_utils as library
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scpo_ray.models.rendering import RefusedTexts, Renderer, load_renderer
from scpo_ray.records import InputError, Text
from scpo_ray.settings.model import ModelConfig
from tests.models.made_tokenizers import FAMILIES, TURNS, made_tokenizer

# One word, one token: "<|turn|>", the role, what is said, "</s>" for each turn.
SPACED = (
    "{% for m in messages %}{{ '<|turn|> ' + m['role'] + ' ' + m['content'] + ' </s> ' }}"
    "{% endfor %}"
)
FRAME = ["<|turn|>", "</s>", "<|turn|>", "</s>"]


def renderer_of(folder: Path, template: str, *, family: str = "WordLevel", max_length: int = 24):
    made_tokenizer(folder, family, chat_template=template)
    return load_renderer(folder, ModelConfig(path=str(folder), max_length=max_length))


def words_of(renderer: Renderer, text: Text) -> list[str]:
    tokens = renderer.encode([text])
    return renderer.tokenizer.convert_ids_to_tokens(tokens.input_ids.tolist())


def counts(words: list[str]) -> tuple[int, int, int]:
    """How often history, prompt and response are in it, by the word that each repeats."""
    return words.count("river"), words.count("tea"), words.count("art")


@pytest.fixture(scope="module")
def spaced(tmp_path_factory) -> Renderer:
    return renderer_of(tmp_path_factory.mktemp("chat") / "model", SPACED)


@pytest.mark.parametrize(
    ("num_prompt", "num_response", "kept"),
    [
        (2_000, 5, (0, 13, 5)),
        (2_000, 17, (0, 1, 17)),
        (2_000, 18, (0, 0, 18)),
        (2_000, 19, (0, 0, 18)),
        (3, 2_000, (0, 0, 18)),
        (9, 9, (0, 9, 9)),
        (10, 9, (0, 9, 9)),
    ],
)
def test_the_prompt_goes_before_the_response_and_the_frame_stays(
    spaced, num_prompt, num_response, kept
):
    # 24 tokens, six of them the template's: 18 for the texts
    words = words_of(spaced, Text((), "tea " * num_prompt, "art " * num_response))

    assert counts(words) == kept
    assert len(words) == min(24, 6 + num_prompt + num_response)
    assert [word for word in words if word in set(FRAME)] == FRAME
    assert (words[1], words[-1]) == ("user", "</s>")


def turns_of(*lengths: int, system: int = 0) -> tuple[tuple[str, str], ...]:
    roles = ["user", "assistant"] * len(lengths)
    turns = [(role, "river " * n) for role, n in zip(roles, lengths, strict=False)]
    return (*([("system", "market " * system)] if system else []), *turns)


@pytest.mark.parametrize(
    ("history", "kept", "num_system"),
    [
        (turns_of(2, 2), (4, 2, 2), 0),
        (turns_of(9, 9), (0, 2, 2), 0),
        (turns_of(50, 50, 2, 2), (4, 2, 2), 0),
        (turns_of(2, 2, 50, 50), (0, 2, 2), 0),
        (turns_of(1, 1, 1, 1, 1, 1), (2, 2, 2), 0),
        (turns_of(50, 50, system=3), (0, 2, 2), 3),
        (turns_of(50, 50, system=50), (0, 2, 2), 0),
    ],
)
def test_the_oldest_turns_go_first_and_whole(spaced, history, kept, num_system):
    words = words_of(spaced, Text(history, "tea tea", "art art"))

    assert counts(words) == kept
    assert words.count("market") == num_system
    assert words.count("<|turn|>") == words.count("</s>")
    assert len(words) <= 24


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    num_prompt=st.integers(0, 90),
    num_response=st.integers(1, 90),
    spelled=st.sampled_from(["", "</s> ", "[CLS]<|turn|>"]),
)
def test_whatever_is_cut_the_responses_end_is_the_turns_end(
    cut, family, num_prompt, num_response, spelled
):
    renderer = cut[family]
    text = Text((), spelled + "tea " * num_prompt, "art " * num_response + spelled)

    words = words_of(renderer, text)

    assert len(words) <= 48
    control = [word for word in words if word in {"[CLS]", *FRAME}]
    assert control == ["[CLS]", *FRAME]
    response = words[len(words) - 1 - words[::-1].index("<|turn|>") :]
    assert len(response) > 3  # its header, something said, its end


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> dict[str, Renderer]:
    folder = tmp_path_factory.mktemp("cut")
    return {
        name: renderer_of(folder / name, TURNS, family=name, max_length=48) for name in FAMILIES
    }


def test_a_frame_without_special_tokens_stays(tmp_path):
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '.\n\n' }}{% endfor %}"
    renderer = renderer_of(tmp_path / "model", template, family="byte-level BPE", max_length=40)

    ids = renderer.encode([Text((), "tea " * 50, "bread " * 5)]).input_ids.tolist()

    said = renderer.tokenizer.decode(ids)
    assert re.fullmatch(r"user: tea( tea)*\.\n\nassistant: (bread ){5}\.\n\n", said)


def test_what_a_template_trims_or_drops_is_no_part_of_the_frame(tmp_path):
    template = SPACED.replace("m['content']", "m['content'].split('</think>')[-1]|trim")
    renderer = renderer_of(tmp_path / "model", template)

    words = words_of(renderer, Text((), "tea " * 50, "bread </think>  art art "))

    # 24 - 6 of the template - 2
    assert counts(words) == (0, 16, 2)
    assert words.count("bread") == 0


def test_a_frame_that_leaves_no_room_is_refused(tmp_path):
    renderer = renderer_of(tmp_path / "model", "{{ 'bread ' * 30 }}" + SPACED)

    with pytest.raises(RefusedTexts) as caught:
        renderer.encode([Text((), "tea", "art")])

    assert caught.value.reasons == {
        0: "the template's own tokens are 36, model.max_length = 24 leaves no room for the response"
    }


ALTERNATING = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system here') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate\nand more') }}{% endif %}{% endfor %}" + SPACED
)


def test_every_refused_text_is_named_with_the_templates_reason(tmp_path):
    renderer = renderer_of(tmp_path / "model", ALTERNATING)
    texts = [
        Text((), "tea", "art"),
        Text((("system", "bread"),), "tea", "art"),
        Text((("user", "bread"),), "tea", "art"),
        Text((("user", "bread"), ("assistant", "bread")), "tea", "art"),
    ]

    with pytest.raises(RefusedTexts) as caught:
        renderer.encode(texts)

    assert caught.value.reasons == {1: "No system here", 2: "Roles must alternate"}
    assert str(caught.value).splitlines() == [
        "2 of 4 texts cannot be rendered",
        "  text 1: No system here",
        "  text 2: Roles must alternate",
    ]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0].content.nothing.at_all }}", "nothing"),
        ("{{ messages[7]['content'] + 'a' }}", "7"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0]['content'][0]['text']['a'] }}", "no attribute"),
    ],
)
def test_a_template_that_breaks_in_any_way_is_named_with_its_reason(tmp_path, template, reason):
    renderer = renderer_of(tmp_path / "model", template)

    with pytest.raises(RefusedTexts) as caught:
        renderer.encode([Text((), "tea", "art")])

    assert reason in caught.value.reasons[0]


@pytest.mark.parametrize(
    ("template", "title", "problem"),
    [
        ("{% for %}", "model.path = {}: the chat template is no Jinja template", "line 1: "),
        (
            "{{ ['a', 'b'] | random }}",
            "model.path = {}: the chat template draws at random",
            "the same text",
        ),
        (
            [{"name": "tools", "template": SPACED}],
            "model.renderer = chat: the tokenizer of {} has no default chat template",
            "",
        ),
    ],
    ids=["syntax", "random", "no default"],
)
def test_a_template_that_cannot_be_used_is_refused(tmp_path, template, title, problem):
    with pytest.raises(InputError) as caught:
        renderer_of(tmp_path / "model", template)

    assert caught.value.title == title.format(tmp_path / "model")
    assert caught.value.problems[0].startswith(problem)


DATED = [
    "{{ '<|turn|> ' + strftime_now('%d') + ' </s> ' }}",
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ date_string }} ",
    "{{ ('river' if strftime_now('%-d')|int % 2 else 'market') + ' ' }}",
    "{% macro day() %}{{ strftime_now('%A') }}{% endmacro %}{{ day() }} ",
    "{% for n in [1] %}{{ strftime_now(format='%H:%M:%S') }}{% endfor %} ",
]


@pytest.mark.parametrize("dated", DATED)
def test_two_days_give_the_same_tokens(tmp_path, monkeypatch, caplog, dated):
    seen = []
    for number, day in enumerate((5, 6)):
        at = datetime(2026, 11, day, 3 * day, day, day)
        monkeypatch.setattr(library, "datetime", type("Day", (), {"now": lambda at=at: at}))
        library._compile_jinja_template.cache_clear()
        with caplog.at_level(logging.WARNING):
            renderer = renderer_of(
                tmp_path / str(number), dated + SPACED, family="byte-level BPE", max_length=99
            )
        seen.append((renderer.fingerprint, one_text(renderer)))

    assert seen[0] == seen[1]
    assert caplog.text.count("asks for today's date and is told 26 Jul 2024, on every day") == 2


def one_text(renderer: Renderer) -> list[int]:
    return renderer.encode([Text((), "tea", "art")]).input_ids.tolist()


def test_the_fixed_day_is_written_as_the_template_asks(tmp_path):
    asked = "{{ strftime_now('%A %-d. %B %Y, %d/%m/%y %H:%M 100%% %j') }}|"
    renderer = renderer_of(tmp_path / "model", asked, family="byte-level BPE", max_length=99)

    said = renderer.tokenizer.decode(one_text(renderer))

    assert said == "Friday 26. July 2024, 26/07/24 00:00 100% 208|"


@pytest.mark.parametrize(
    "start", ["\n\n  a", "  {% if true %}a{% endif %}", "{%- if true %} a{% endif %}"]
)
def test_fixing_the_day_changes_nothing_else(tmp_path, start):
    plain = renderer_of(tmp_path / "plain", start + SPACED, family="byte-level BPE", max_length=99)
    dated = renderer_of(
        tmp_path / "dated",
        start + SPACED + "{% if false %}{{ strftime_now('%d') }}{% endif %}",
        family="byte-level BPE",
        max_length=99,
    )

    np.testing.assert_array_equal(one_text(plain), one_text(dated))
