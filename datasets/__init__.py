"""Bytes and samples: packing, the index, storage, draws, loading. Knows neither Ray nor models.

The name is also Hugging Face's package; ``python -c "import datasets; print(datasets.__file__)"`` tells which one won.
"""
