"""A picture of handwriting -> the form of MNIST's images."""
