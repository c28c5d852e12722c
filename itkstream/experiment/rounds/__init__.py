"""Rounds of an experiment: listed, checked, registered one after the other, compared in cycles."""
