"""Images that are voxels and little else: bare arrays, and folders of planes."""
