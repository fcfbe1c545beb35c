"""Bad models, damaged runs and disks through the command line; see `test_bad_input`."""
# ruff: noqa: F401, F811 (the fixtures are imported)

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.test_remote_code import CODE
from tests.storage.test_disk_faults import mounted_tmpfs
from tests.test_bad_input import assert_refused, place
from tests.test_cli import run_folder

# Models


def remove_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


def make_causal(model: Path) -> None:
    document = json.loads((model / "config.json").read_text())
    document["architectures"] = ["BertLMHeadModel"]
    (model / "config.json").write_text(json.dumps(document))
    weights = load_file(model / "model.safetensors")
    body = {name: tensor for name, tensor in weights.items() if "classifier" not in name}
    save_file(body, model / "model.safetensors", metadata={"format": "pt"})


def make_pickle(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def cut_weights(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def drop_weight(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    del weights["bert.embeddings.word_embeddings.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def spoil_with_nan(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["classifier.bias"][0] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


BAD_MODELS = {
    "no tokenizer": (remove_tokenizer, ["the folder has no tokenizer"]),
    "no score head": (make_causal, ["has no score head", "set model.new_head to true"]),
    "pickle": (make_pickle, ["weights must be safetensors", "pytorch_model.bin"]),
    "half a weight file": (cut_weights, ["the weights cannot be loaded"]),
    "a missing weight": (drop_weight, ["weights are missing", "word_embeddings.weight"]),
    "rewards that are no numbers": (
        spoil_with_nan,
        ["gives rewards that are not finite", "to 72 of 72 texts"],
    ),
    "no model at all": (shutil.rmtree, ["neither a folder nor a hub model"]),
}


@pytest.mark.parametrize("fault", BAD_MODELS)
def test_a_bad_model_is_refused(scpo, place, fault):
    spoil, expected = BAD_MODELS[fault]
    model = place.own_model()
    spoil(model)

    assert_refused(scpo("train", place.write()), place, f"model.path = {model}", *expected)


def test_a_models_code_does_not_run_and_the_setting_is_named(scpo, place):
    model, marker = place.own_model(), place.folder / "marker"
    (model / "theirs.py").write_text(CODE.format(marker=str(marker)))
    document = json.loads((model / "config.json").read_text())
    document |= {
        "model_type": "theirs",
        "auto_map": {
            "AutoConfig": "theirs.Config",
            "AutoModelForSequenceClassification": "theirs.Model",
        },
    }
    (model / "config.json").write_text(json.dumps(document))

    outcome = scpo("train", place.write())

    assert_refused(outcome, place, f"model.path = {model}", "trust_remote_code")
    assert not marker.exists()


# Runs that were there before


@pytest.mark.parametrize("ended", [False, True])
def test_changed_data_under_a_run_is_refused(scpo, place, ended):
    config = place.write()
    assert scpo("train", config).code == 0
    folder = run_folder(place.output_dir)
    if not ended:
        (folder / "result.json").unlink()
    place.set_row(5, chosen="answer about art")

    outcome = scpo("train", config)

    assert outcome.code == 2
    assert f"{folder}: began with other input\n  training fingerprint then" in outcome.err
    assert "delete the folder" in outcome.err


def test_a_damaged_result_is_refused(scpo, place):
    config = place.write()
    assert scpo("train", config).code == 0
    file = run_folder(place.output_dir) / "result.json"
    file.write_text(file.read_text()[:100])

    outcome = scpo("report", file.parent, "--output", place.folder / "page.html")

    assert outcome.code == 2
    assert str(file) in outcome.err
    assert "Traceback" not in outcome.err
    assert not (place.folder / "page.html").exists()


def test_a_damaged_model_is_neither_evaluated_nor_exported(scpo, place):
    config = place.write()
    assert scpo("train", config).code == 0
    run = run_folder(place.output_dir)
    weights = bytearray((run / "model" / "model.safetensors").read_bytes())
    weights[-5] ^= 64
    (run / "model" / "model.safetensors").write_bytes(weights)

    for outcome in (
        scpo("evaluate", run, config),
        scpo("export", run, place.folder / "exported"),
    ):
        assert outcome.code == 2
        assert f"{run / 'model'}: damaged\n  model.safetensors is not what" in outcome.err
        assert f"delete {run}, and the command that made it makes it again" in outcome.err
    assert not (place.folder / "exported").exists()


def test_a_result_that_a_folder_stands_for_is_refused_before_any_work(scpo, place):
    config = place.write()
    assert scpo("train", config).code == 0
    result = run_folder(place.output_dir) / "result.json"
    result.unlink()
    result.mkdir()

    outcome = scpo("train", config)

    assert outcome.code == 2
    assert f"{result}: cannot be read\n  Is a directory\n  delete {result.parent}" in outcome.err


def test_a_part_of_the_data_needs_nothing_scored_or_rendered_anew(scpo, place, caplog):
    config = place.write()
    assert scpo("score", config).code == 0
    caplog.clear()

    assert scpo("score", config, "--set", "data.data_fraction=0.5").code == 0

    # 30 of 72 training texts go with half of the training users.
    assert "tokens: 48 of 48 texts known" in caplog.messages
    assert any(line.startswith("scores: 48 texts read from") for line in caplog.messages)


def test_a_score_store_that_a_crash_damaged_is_made_anew(scpo, place):
    config = place.write()
    folder = Path(json.loads(scpo("score", config, "--json").out)["path"])
    path = folder / "part-000000" / "values.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    (folder / ".part-000001.part").mkdir()
    (folder / ".part-000001.part" / "values.npy").write_bytes(b"left by a crash")

    assert scpo("train", config).code == 0
    assert path.read_bytes() == whole
    assert [p.name for p in folder.glob("*part*")] == ["part-000000"]


def test_evaluating_what_is_no_model_is_refused(scpo, place):
    outcome = scpo("evaluate", place.folder / "nothing", place.write())

    assert_refused(outcome, place, f"{place.folder / 'nothing'}: neither a folder nor a hub model")


# Disks


@pytest.mark.parametrize("size", ["100k", "500k", "900k"])
def test_a_full_disk_is_told_and_leaves_nothing_half_written(scpo, place, size):
    with mounted_tmpfs(place.folder / "disk") as disk:
        # Enough for the data alone, for the tokens as well, for all but a checkpoint.
        subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
        place.document["train"]["checkpoint_every"] = 2
        place.document["output_dir"] = str(disk)

        outcome = scpo("train", place.write())

        assert_refused(outcome, place, str(disk), "cannot be written", "no space left")


def test_a_read_only_output_folder_is_told(scpo, place):
    with mounted_tmpfs(place.folder / "disk") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        place.document["output_dir"] = str(disk)

        outcome = scpo("train", place.write())

        assert_refused(outcome, place, str(disk), "cannot be written", "Read-only")


def test_an_output_folder_that_is_a_file_is_told(scpo, place):
    place.output_dir.write_text("")

    assert_refused(scpo("train", place.write()), place, str(place.output_dir))
