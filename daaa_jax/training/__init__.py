"""The training loop that all stages share: batches, updates, rounds, checkpoints, resume."""
