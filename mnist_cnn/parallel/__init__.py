"""Devices and processes: the mesh, replicas on it, and the compile cache."""
