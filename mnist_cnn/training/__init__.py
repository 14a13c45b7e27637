"""Pure functions: random keys, batches, augmentation, the state, the step and scoring."""
