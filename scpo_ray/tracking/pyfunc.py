"""An exported folder as an MLflow model: weights, the code that reads them, what it takes."""

from importlib import metadata
from pathlib import Path
from typing import Any

from scpo_ray.results import RunResult
from scpo_ray.settings.naming import trained_cultures

# What the logged code imports; deepspeed, ray and the like have no part in giving rewards.
_MODEL_PACKAGES = (
    "filelock mlflow numpy pandas peft pyarrow pydantic pyyaml safetensors torch tqdm transformers"
).split()


def save_pyfunc(path: Path, folder: Path, run_id: str, model: Any, result: RunResult) -> None:
    """Writes the MLflow model: weights, this package's code, signature, exact requirements.

    Not `mlflow.pyfunc.log_model`: it needs MLflow's global state, puts the model into the
    default experiment where no run is active, and loads the weights a second time to check them.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import Model

    mlflow.pyfunc.save_model(
        path=str(path),
        python_model=str(Path(__file__).with_name("mlflow_model.py")),
        artifacts={"model": str(folder)},
        code_paths=[str(Path(__file__).parents[1])],
        model_config={"cultures": trained_cultures(result.culture_weights)},
        signature=_signature(),
        input_example=pd.DataFrame(
            {"prompt": ["What should I cook tonight?"], "response": ["A pot of lentil soup."]}
        ),
        # "+cpu" and the like name a build that package indexes do not have.
        pip_requirements=[
            f"{name}=={metadata.version(name).partition('+')[0]}" for name in _MODEL_PACKAGES
        ],
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            model_uuid=model.model_id,
            run_id=run_id,
            model_id=model.model_id,
        ),
    )


def _signature() -> Any:
    """What the pyfunc takes: see `mlflow_model`."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    message = Object([Property(name, DataType.string) for name in ("role", "content")])
    kinds = {"prompt": DataType.string, "response": DataType.string, "messages": Array(message)}
    return ModelSignature(
        inputs=Schema([ColSpec(kind, name, required=False) for name, kind in kinds.items()]),
        outputs=Schema([ColSpec(DataType.float, "reward")]),
        params=ParamSchema(
            [
                ParamSpec("culture", DataType.string, ""),
                ParamSpec("scale", DataType.string, "raw"),
            ]
        ),
    )
