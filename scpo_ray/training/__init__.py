"""The plan, the loss, the loop, the engines, checkpoints.

May import `workers`, `settings`, `storage`, `models`, `tracking`.
"""
