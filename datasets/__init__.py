"""From a downloaded data set to batches: packing, the index, storage, sampling, loading. Imports neither Ray nor models.

Each folder imports only those before it: media, shards, sampling, loading; and for packing: media, shards, layouts, packing.
Hugging Face's package has the same name; ``python -c "import datasets; print(datasets.__file__)"`` shows which one is imported.
"""
