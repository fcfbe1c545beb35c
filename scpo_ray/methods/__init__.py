"""Which pairs count, and how much; what the rivals learn on frozen features.

May import all of what a run needs above `training`, and `training`.
"""
