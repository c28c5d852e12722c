"""Evidence of how well images agree that no descent has raised, and what is chosen by it."""
