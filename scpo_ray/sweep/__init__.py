"""A space into settings, settings into trials; what came out, ranked.

May import `statistics`, `settings`, `storage`, `evaluation`.
"""
