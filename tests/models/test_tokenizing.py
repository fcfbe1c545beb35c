"""Many texts become tokens in several processes, and the same as in one."""

import logging
import pickle
from pathlib import Path

import psutil
import pytest

import scpo_ray.models.tokenizing
from scpo_ray.models.known_renderer import known_renderer
from scpo_ray.models.rendering import RefusedTexts
from scpo_ray.models.tokenizing import tokenize
from scpo_ray.records import InputError, Text
from scpo_ray.settings.model import ModelConfig
from scpo_ray.storage.stores import TokenStore
from tests.models.test_global_model import ListedTexts
from tests.models.test_rendering import CHAT_TEMPLATE, changed_tokenizer, renderer_of
from tests.storage.test_disk import everything_below

RESPONSES = ["answer", "[SEP] about [CLS]", "! [MASK] art", "art " * 60, ""]
TEXTS = [(f"about {'art ' * n}", response) for n in range(6) for response in RESPONSES]


@pytest.fixture
def chat(tiny_backbone, tmp_path):
    folder = changed_tokenizer(tiny_backbone, tmp_path / "chat", chat_template=CHAT_TEMPLATE)
    config = ModelConfig(path=str(folder), max_length=48)
    return known_renderer(folder, config, tmp_path / "renderers")


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr("scpo_ray.storage.stores._TEXTS_PER_PART", 8)
    monkeypatch.setattr("scpo_ray.storage.stores._TEXTS_PER_CHUNK", 3)
    monkeypatch.setattr(scpo_ray.models.tokenizing, "MIN_TEXTS_OF_A_PROCESS", 2)
    monkeypatch.setattr("joblib.externals.loky.cpu_count", lambda: 2)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in everything_below(folder)}


def test_several_processes_write_the_files_that_one_writes(chat, tmp_path, caplog, request):
    caplog.set_level(logging.INFO)
    tokenize(chat, ListedTexts(*TEXTS), TokenStore(tmp_path / "one"))
    assert "processes" not in caplog.text

    request.getfixturevalue("two_processes")
    tokenize(chat, ListedTexts(*TEXTS), TokenStore(tmp_path / "two"))

    assert f"tokenizing {len(TEXTS)} texts in 2 processes" in caplog.text
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_process_that_is_ended_from_outside_is_told(chat, tmp_path, two_processes):
    class Ending(ListedTexts):
        def __getitem__(self, index):
            if index == len(TEXTS) - 1:
                for process in psutil.Process().children():
                    if "popen_loky" in " ".join(process.cmdline()):
                        process.kill()
            return super().__getitem__(index)

    with pytest.raises(InputError, match="ended from outside") as error:
        tokenize(chat, Ending(*TEXTS), TokenStore(tmp_path))

    assert error.value.problems == ("the same command goes on from the parts that are done",)


@pytest.mark.parametrize("only_text", [True, False])
def test_a_reader_elsewhere_takes_special_tokens_as_it_did_here(tiny_backbone, tmp_path, only_text):
    template = None if only_text else CHAT_TEMPLATE
    folder = changed_tokenizer(tiny_backbone, tmp_path / "copy", chat_template=template)
    here = renderer_of(folder)

    elsewhere = pickle.loads(pickle.dumps(here))

    assert here.reader.backend.encode_special_tokens == only_text
    assert elsewhere.reader.backend.encode_special_tokens == only_text
    texts = [Text((), *said) for said in TEXTS]
    assert elsewhere.encode(texts).input_ids.tolist() == here.encode(texts).input_ids.tolist()


def test_refused_texts_come_back_as_they_were():
    refused = pickle.loads(pickle.dumps(RefusedTexts({3: "no system turn"}, 5)))

    assert (refused.reasons, refused.num_texts) == ({3: "no system turn"}, 5)
    assert str(refused) == str(RefusedTexts({3: "no system turn"}, 5))
