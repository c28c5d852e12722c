"""Deformations of images in memory by local correlation."""
