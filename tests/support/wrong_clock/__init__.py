"""A Python process on a machine whose clock is wrong."""
