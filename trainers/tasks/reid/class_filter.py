"""Inter-class filtering: identities that may be the same person as a sample's are no negatives for it.

Source: ``interclass_filtering_threshold`` of insightface, recognition/arcface_torch/losses.py. B samples, n identities.
"""

from torch import Tensor


def filtered(cosines: Tensor, own: tuple[Tensor, Tensor], threshold: float | None) -> Tensor:
    """Return cosines [B, n] with 0, and no gradient, for other identities that are nearer to a sample than the threshold.

    ``own``: samples and columns of the samples' own identities, which stay. None: nothing is filtered.
    """
    if threshold is None:
        return cosines
    near = cosines.detach() > threshold
    return cosines.masked_fill(near.index_put(own, near.new_zeros(())), 0)
