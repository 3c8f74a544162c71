"""The paper's tables and figures, reproduced by our runs."""
