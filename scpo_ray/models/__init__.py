"""Text to tokens to reward.

May import `workers`, `settings`, `storage`.
"""
