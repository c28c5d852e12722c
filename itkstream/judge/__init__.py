"""How good a registration is: a map of its error, a summary of that, and a verdict."""
