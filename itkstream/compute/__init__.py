"""Graphs run on threads or workers, noted block by block, so that a stopped run continues."""
