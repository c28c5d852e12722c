"""Chunked stores, N5 and Zarr: read and written."""
