"""The paper's tables and figures, filled by runs of our own."""
