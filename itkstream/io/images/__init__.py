"""Images in stores and files: found, understood, opened lazily, written."""
