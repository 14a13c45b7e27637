"""The same training in several libraries, one program per file, as their users would write it.

Each runs as `python -m benchmarks.peers.NAME` in its own environment and reads requests from its
standard input (`serve.py`).
"""
