"""What a run leaves on disk and shows while it goes: its directory, checkpoints, metrics, progress."""
