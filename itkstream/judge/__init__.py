"""Judgement of a registration: a map of its error, a summary of that, and a verdict."""
