"""Reports and W&B."""
