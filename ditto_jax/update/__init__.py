"""Views and pools → one sharded update: advantages, batches, scoring passes, losses, the training state."""
