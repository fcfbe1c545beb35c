"""All that knows Ray: workers, scoring, sweeps; and torchrun and this process too.

May import `experiment` and all rooms above it.
"""
