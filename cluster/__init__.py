"""Runs on Ray: launching, checkpoints, the difficulty actor, progress, sweeps, recurring jobs. Knows no models and no samples."""
