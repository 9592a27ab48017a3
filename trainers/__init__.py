"""One runnable job per file; what they share stands in the folders below."""
