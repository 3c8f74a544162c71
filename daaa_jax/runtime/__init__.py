"""What a run needs besides its mathematics: devices, checkpoints, figures, markers, progress."""
