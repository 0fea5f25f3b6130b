"""The networks, each a file, and the one list of their names."""
