"""Settings, one file per task, based on `base` and, for photos, on `photos`."""
