"""Random generators that depend only on a seed, a purpose and numbers such as the step, never on the order of calls."""

import numpy as np


def generator(seed: int, purpose: str, *place: int) -> np.random.Generator:
    """Return a new generator for (seed, purpose, *place), e.g. the step: there is no random state to save or restore."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *purpose.encode(), *place])))
