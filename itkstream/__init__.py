"""Register 3-D images too large for memory."""
