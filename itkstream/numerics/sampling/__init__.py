"""Images and fields sampled on other grids: maps, pyramids, inverses, blends."""
