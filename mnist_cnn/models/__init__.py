"""The network, its layers, and what can be said about a module without training it."""
