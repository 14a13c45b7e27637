"""Timings beside other programs, and the results' table and plot. Not part of the package."""
