"""Settings that have a name."""

from typing import Any

from scpo_ray.settings.data import PAPER_CULTURES

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "method": "scpo",
        "seed": 0,
        "data": {
            "source": "prism",
            "cultures": list(PAPER_CULTURES),
            "history": False,
            "split": {"dev_size": 0.0},
        },
        # On the hub this model's weights are pickles alone.
        "model": {
            "path": "OpenAssistant/reward-model-deberta-v3-base",
            "convert_pickle": True,
            "max_length": 512,
        },
        "selection": {"filter_threshold": 0.7, "weight_temperature": 1.10},
        "train": {
            "batch_size": 8,
            "max_steps": 1_024,
            "learning_rate": 1e-6,
            "schedule": "linear",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
        },
        "evaluation": {"distinctive_threshold": 0.5},
    }
}
