"""Image files, of the ITK world and TIFF: read, and written by ITK."""
