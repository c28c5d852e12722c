"""The descent on a GPU: CuPy, kernels of this package, and the choice of an engine."""
