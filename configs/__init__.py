"""Settings of each task: a file each, on top of `base` and, for photos, `photos`."""
