"""Forms of the layers' operations that are fast on a CPU; no file here knows of models."""
