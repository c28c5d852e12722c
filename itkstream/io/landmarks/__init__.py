"""Files of landmarks: tables, 3D Slicer, BigWarp, napari."""
