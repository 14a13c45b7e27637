"""Fast forms of the layers' operations for a CPU; no file here knows about models."""
