"""What is read before any network: the second time, without what reads networks."""

from dataclasses import asdict

from scpo_ray.commands.health import data_health
from tests.test_house import modules_loaded_by
from tests.tiny import tiny_config, tiny_document


def test_a_second_look_at_the_data_loads_neither_torch_nor_the_tokenizer(
    tiny_reward_model, tmp_path
):
    document = tiny_document(tiny_reward_model, tmp_path)
    health = data_health(tiny_config(tiny_reward_model, tmp_path))
    assert health.truncated_texts == {"North": 0, "South": 0}

    loaded = modules_loaded_by(
        "from dataclasses import asdict\n"
        "import scpo_ray.cli.main\n"
        "from scpo_ray.cli import runs\n"
        "from scpo_ray.commands.health import data_health\n"
        "from scpo_ray.report.listings import data_tables\n"
        "from scpo_ray.settings.run import RunConfig\n"
        f"health = data_health(RunConfig.model_validate({document!r}))\n"
        "data_tables(health)\n"
        f"assert repr(asdict(health)) == {repr(asdict(health))!r}"
    )

    assert loaded & {"torch", "transformers", "datasets", "mlflow", "ray", "matplotlib"} == set()
