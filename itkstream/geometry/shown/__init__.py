"""Values as a notebook shows them: a table and, of an image, a small picture."""
