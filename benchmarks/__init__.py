"""How fast it is, beside Keras, PyTorch and plain Flax: `python -m benchmarks.training`."""
