"""A picture -> an image as the network knows them, with Pillow, NumPy and SciPy alone."""
