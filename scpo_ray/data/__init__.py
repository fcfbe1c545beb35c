"""Sources of preferences into one table; pairs, splits, health.

May import `settings`, `storage`.
"""
