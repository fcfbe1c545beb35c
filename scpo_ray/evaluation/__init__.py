"""Layers, controls, opinions; methods side by side; champions.

May import `statistics`, `settings` and `storage`.
"""
