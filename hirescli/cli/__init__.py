"""The command line: the only layer that knows typer and rich, and the only one that prints."""
