"""The versions that aliases name now."""

import pytest

from scpo_ray.records import InputError
from scpo_ray.serve.champions import resolved_models
from scpo_ray.tracking.mlflow_store import open_models

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


@pytest.fixture
def uri(tmp_path, mlflow_database):
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_an_alias_is_the_number_it_stands_at_and_moves(uri, tmp_path):
    client, _ = open_models(uri, "")
    client.create_registered_model("scpo-Chile")
    for _ in range(2):
        client.create_model_version("scpo-Chile", str(tmp_path))
    models = {
        "Chile": ("scpo-Chile@champion", "scpo-Chile:7"),
        "Peru": ("scpo-Peru@champion",),
        "Mexico": ("scpo-Mexico:3",),
        "Here": (str(tmp_path),),
    }

    found = []
    for number in ("1", "2"):
        client.set_registered_model_alias("scpo-Chile", "champion", number)
        found.append(resolved_models(models, uri))

    unmoved = {name: model for name, (model, *_) in models.items() if name != "Chile"}
    assert found == [
        {"Chile": "scpo-Chile:1,scpo-Chile:7", **unmoved},
        {"Chile": "scpo-Chile:2,scpo-Chile:7", **unmoved},
    ]


def test_without_an_alias_no_store_is_opened():
    models = {"Chile": ["scpo-Chile:3"], "Mexico": ["runs/mexico"]}

    resolved = resolved_models(models, "http://127.0.0.1:1")
    assert resolved == {"Chile": "scpo-Chile:3", "Mexico": "runs/mexico"}
    with pytest.raises(InputError, match="http://127.0.0.1:1"):
        resolved_models({"Chile": ["scpo-Chile@champion"]}, "http://127.0.0.1:1")
