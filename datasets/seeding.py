"""Random generators that depend on a seed, a purpose and a place alone, never on the order of calls."""

import numpy as np


def generator(seed: int, purpose: str, *place: int) -> np.random.Generator:
    """A random generator of its own for every (seed, purpose, place): there is no random state to keep or restore."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *purpose.encode(), *place])))
