"""Presets: named settings for `--preset`, named as on the command line. Options that are given besides override them."""
