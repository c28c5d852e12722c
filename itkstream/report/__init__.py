"""The report of a registration: one page of pictures, numbers and words, and the numbers alone."""
