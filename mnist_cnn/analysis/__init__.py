"""Finished runs: statistics, comparison, plots, HTML; a trained network read again."""
