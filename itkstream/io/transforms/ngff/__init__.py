"""Transforms in OME-Zarr: scenes, and stores of a field and an affine."""
