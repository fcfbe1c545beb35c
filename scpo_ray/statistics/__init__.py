"""Intervals, paired tests and their theory: arrays in, numbers out.

May import the nouns (`records`, `results`).
"""
