"""Images cut into blocks, and lazy graphs over them: the only builder of graphs."""
