"""Transforms found from images: coarse levels as a whole, then block by block."""
