"""The network, its layers, and what can be computed about any module without training it."""
