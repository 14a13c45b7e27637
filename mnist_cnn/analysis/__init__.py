"""Finished runs: comparison, plots, HTML; a trained network loaded again and exported."""
