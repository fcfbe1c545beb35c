"""Results into tables, pictures and pages; computes no metric.

May import `evaluation`, `sweep`, `tracking` and what they rest on.
"""
