"""Progress of a run: what is told of it, how long the rest takes, how that is drawn."""
