"""Arrays in, arrays out: numpy, scipy and numba, without dask or storage."""
