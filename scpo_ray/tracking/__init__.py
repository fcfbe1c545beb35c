"""MLflow, JSON lines or none; the registry of models.

May import `settings`, `storage`, `models`, `evaluation`, `sweep`.
"""
