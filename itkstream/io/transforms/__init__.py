"""Files of transforms: ITK's, elastix's, displacement images, OME-Zarr."""
