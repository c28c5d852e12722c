"""Files, folders, object stores, and the arrays and metadata in them."""
