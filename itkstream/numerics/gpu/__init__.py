"""Arrays and kernels on a GPU, by CuPy, and the choice of an engine."""
