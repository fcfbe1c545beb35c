"""Every setting, its default, its check and its page; the names of things.

May import the nouns (`records`, `results`).
"""
