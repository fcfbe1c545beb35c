"""MLflow, JSON lines or none."""

from typing import Literal

from pydantic import field_validator

from scpo_ray.settings.section import Section
from scpo_ray.settings.shown import password_fault


class TrackingConfig(Section):
    tracker: Literal["mlflow", "jsonl", "none"] = "mlflow"
    """Where metrics and models go besides the run folder."""

    uri: str | None = None
    """MLflow tracking URI, without a password (MLFLOW_TRACKING_USERNAME and _PASSWORD give it);
    null: a SQLite file, mlflow.db, in `output_dir`."""

    log_model: bool = True
    """Log the trained model to MLflow and register it as scpo-<culture>."""

    @field_validator("uri")
    @classmethod
    def uri_can_be_kept(cls, value: str | None) -> str | None:
        fault = None if value is None else password_fault(value, is_uri=True)
        if fault is not None:
            raise ValueError(fault)
        if value is not None and value.lower().startswith("sqlite:"):
            _check_database(value)
        return value


def _check_database(uri: str) -> None:
    """Raises: ValueError if the URI would be read as another file than it seems to name."""
    path, _, options = uri.partition(":")[2].partition("?")
    rules = {
        "must have three slashes and a path, as in sqlite:///runs/mlflow.db": not (
            path.startswith("///") and path.strip("/")
        ),
        "a database in memory keeps nothing": ":memory:" in path,
        "must be a path, not a URI within a URI": path.startswith("///file:"),
        "~ is not read as your home here: write the whole path": path.startswith("///~"),
        "what follows a ? are options, name=value: write %3F for a ? in a name": bool(
            options or uri.endswith("?")
        )
        and "=" not in options,
        "a path cannot hold a NUL character": "\0" in uri,
    }
    for rule, is_broken in rules.items():
        if is_broken:
            raise ValueError(f"{rule}, got {uri!r}")
