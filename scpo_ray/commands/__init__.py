"""What the commands beside train and compare do, without printing it.

May import all rooms above it.
"""
