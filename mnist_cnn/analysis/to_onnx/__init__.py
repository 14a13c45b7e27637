"""A JAX program of a batch of images -> a graph of ONNX operators."""
