"""A run on disk: its working directory, its stages and its result."""
