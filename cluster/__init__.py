"""Runs on Ray: launching, checkpoints, the difficulty actor, progress, sweeps, recurring jobs. Knows nothing of models and samples."""
