"""Transforms applied, changed and checked: images and points, inverses, folds, files."""
