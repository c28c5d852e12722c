"""Images over HTTP: the moving one aligned as it is looked at, and never written."""
