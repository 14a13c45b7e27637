"""A run from beginning to end: the loop, checkpoints, the run directory, what is printed."""
