"""What lies on disk, whole or not at all.

May import `records`, `settings`.
"""
