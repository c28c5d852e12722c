"""Experiments of several rounds: registered onto one of them, joined in one image, looked over."""
