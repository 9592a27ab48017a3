"""Readers of others' data sets: from a folder or archive to samples with their splits, identities, labels or boxes."""
