"""Rewards in use: one scoring core for any mixture of cultures, and what is built on it: a file's
rewards, candidates side by side.
"""
