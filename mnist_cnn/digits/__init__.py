"""A picture of a handwritten digit -> an image like MNIST's, with Pillow, NumPy and SciPy alone."""
