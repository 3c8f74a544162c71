"""A run on disk: its working directory, its stages, its checks beforehand and its result."""
