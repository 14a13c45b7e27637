"""The same training, one program a file, each as its own users would write it.

Each is started as `python -m benchmarks.peers.NAME` in an environment of its own, and told over
its standard input what to do (`serve.py`).
"""
