"""Key points, their matches, and affines fitted to them."""
