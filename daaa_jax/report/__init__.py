"""The report of a run: one page that shows a person whether to trust the result."""
