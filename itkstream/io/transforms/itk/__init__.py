"""Transform files of ITK: text, HDF5, MATLAB."""
