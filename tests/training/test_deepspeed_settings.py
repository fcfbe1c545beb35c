"""DeepSpeed's configuration: ours, and what a user's JSON may add to it."""

import json
from pathlib import Path
from typing import Any

import pytest

from scpo_ray.records import InputError
from scpo_ray.settings.train import TrainConfig
from scpo_ray.training.deepspeed_settings import deepspeed_settings


def settings_with(folder: Path, document: Any = None, **train: Any) -> dict[str, Any]:
    path = None
    if document is not None:
        path = folder / "ds.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
    config = TrainConfig.model_validate({"engine": "deepspeed", "deepspeed_config": path, **train})
    return deepspeed_settings(config)


def test_the_settings_follow_from_the_runs(tmp_path):
    settings = settings_with(
        tmp_path, zero_stage=3, offload_optimizer=True, max_grad_norm=0.5, learning_rate=1e-4
    )

    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert settings["gradient_clipping"] == 0.5
    assert settings["optimizer"]["params"]["lr"] == 1e-4
    # Nothing of DeepSpeed's own is compiled when a run starts.
    assert settings["optimizer"]["params"]["torch_adam"] is True
    assert settings["zero_force_ds_cpu_optimizer"] is False
    assert "train_batch_size" not in settings
    assert "scheduler" not in settings


@pytest.mark.parametrize(("precision", "enabled"), [("fp32", False), ("bf16", True)])
def test_bf16_is_autocast_as_with_the_other_engine(tmp_path, precision, enabled):
    settings = settings_with(tmp_path, precision=precision)

    autocast = settings["torch_autocast"]
    assert autocast["enabled"] is enabled
    assert autocast["dtype"] == "bfloat16"
    # What is divided travels whole: no module's weights are rounded on the way.
    assert autocast["lower_precision_safe_modules"] == []
    assert settings["bf16"] == {"enabled": False}


def test_a_users_json_adds_to_them(tmp_path):
    settings = settings_with(
        tmp_path,
        {
            "zero_optimization": {"reduce_bucket_size": 1000, "stage": 2},
            "gradient_clipping": "auto",
            "optimizer": {"params": {"torch_adam": False, "lr": "auto"}},
            "bf16": {"enabled": "auto"},
            "comms_logger": {"enabled": True},
        },
        zero_stage=2,
    )

    assert settings["zero_optimization"]["reduce_bucket_size"] == 1000
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["gradient_clipping"] == 1.0
    assert settings["optimizer"]["params"]["lr"] == 1e-6
    # Asked for: DeepSpeed's own Adam, compiled or not.
    assert settings["optimizer"]["params"]["torch_adam"] is False
    assert settings["comms_logger"] == {"enabled": True}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (
            {"zero_optimization": {"stage": 1}},
            "zero_optimization.stage = 1: contradicts train.zero_stage; there it is 2",
        ),
        (
            {"gradient_clipping": 0.3},
            "gradient_clipping = 0.3: contradicts train.max_grad_norm; there it is 1.0",
        ),
        (
            {"optimizer": {"type": "Lamb"}},
            'optimizer.type = "Lamb": contradicts the optimizer, which is always AdamW; there it '
            'is "AdamW"',
        ),
        (
            {"optimizer": {"params": {"lr": 0.1}}},
            "optimizer.params.lr = 0.1: contradicts train.learning_rate; there it is 1e-06",
        ),
        (
            {"scheduler": {"type": "WarmupLR"}},
            'scheduler.type = "WarmupLR": contradicts train.schedule; there it is set',
        ),
        (
            {"train_batch_size": 64},
            "train_batch_size = 64: contradicts train.batch_size; there it is set",
        ),
        (
            {"bf16": {"enabled": True}},
            "bf16.enabled = true: contradicts train.precision (bf16 is autocast here); there it "
            "is false",
        ),
        (
            {"fp16": {"enabled": True}},
            "fp16.enabled = true: contradicts train.precision; there it is false",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            'zero_optimization.offload_optimizer.device = "nvme": contradicts '
            'train.offload_optimizer; there it is "none"',
        ),
    ],
)
def test_a_key_that_contradicts_a_setting_is_named_with_both(tmp_path, document, problem):
    with pytest.raises(InputError) as error:
        settings_with(tmp_path, document, zero_stage=2)

    assert error.value.title.startswith(f"{tmp_path / 'ds.json'}: ")
    assert error.value.problems == (problem,)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"optimizer": "Adam"}, 'optimizer = "Adam": must be an object of settings'),
        ({"optimizer": {"params": None}}, "optimizer.params = null: must be an object of settings"),
        ({"zero_optimization": True}, "zero_optimization = true: must be an object of settings"),
        ({"bf16": [1]}, "bf16 = [1]: must be an object of settings"),
        (
            {"gradient_clipping": {"value": 1}},
            "gradient_clipping.value = 1: there are no settings below gradient_clipping",
        ),
        (
            {"steps_per_print": {"every": 1}},
            "steps_per_print.every = 1: there are no settings below steps_per_print",
        ),
    ],
)
def test_a_value_where_a_section_stands_and_the_other_way_are_named(tmp_path, document, problem):
    with pytest.raises(InputError) as error:
        settings_with(tmp_path, document)

    assert error.value.problems == (problem,)


@pytest.mark.parametrize("nothing", ["auto", {}])
@pytest.mark.parametrize("section", ["optimizer", "zero_optimization", "torch_autocast"])
def test_a_section_left_open_is_as_if_it_were_not_there(tmp_path, section, nothing):
    assert settings_with(tmp_path, {section: nothing}) == settings_with(tmp_path)


def test_every_contradiction_is_named_at_once(tmp_path):
    with pytest.raises(InputError) as error:
        settings_with(tmp_path, {"gradient_clipping": 2, "zero_optimization": {"stage": 1}})

    assert len(error.value.problems) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("", "not JSON"), ("[1]", "must be an object of settings")],
)
def test_a_file_that_is_no_json_object_is_named(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        settings_with(tmp_path, text)

    assert f"train.deepspeed_config = {tmp_path / 'ds.json'}: {message}" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    config = TrainConfig(engine="deepspeed", deepspeed_config=tmp_path / "none.json")

    with pytest.raises(InputError, match=r"none.json: cannot be read\n  No such file"):
        deepspeed_settings(config)
