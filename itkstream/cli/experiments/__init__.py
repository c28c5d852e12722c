"""The commands of experiments and atlases, and of the spots in them."""
