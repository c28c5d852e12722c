"""Advice on a pair: parameters chosen from the data, and what to change where it does not match."""
