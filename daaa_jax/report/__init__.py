"""The report of a run: one HTML page that shows whether to trust the result."""
