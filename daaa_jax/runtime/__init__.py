"""Support for runs: devices, processes, checkpoints, files, metrics, preemption and progress."""
