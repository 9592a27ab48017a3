"""Pixels: decoding, augmentation, video frames, optical flow."""
