"""MLflow, JSON lines or none."""

from typing import Literal

from scpo_ray.settings.section import Section


class TrackingConfig(Section):
    tracker: Literal["mlflow", "jsonl", "none"] = "mlflow"
    """Where metrics and models go besides the run folder."""

    uri: str | None = None
    """MLflow tracking URI; null: a SQLite file, mlflow.db, in `output_dir`."""

    log_model: bool = True
    """Log the trained model to MLflow and register it as scpo-<culture>."""
