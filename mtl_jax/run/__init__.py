"""A run's folder and its checkpoints, local or in a bucket, and restoring from them."""
