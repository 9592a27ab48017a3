"""The losses of region alignment (SCDA, CVPR 2019), on logits.

The labels are those of generative adversarial networks (Goodfellow et al., NeurIPS 2014, with the non-saturating loss of the
generator): a discriminator's label is 1 for a real patch of its domain and 0 for a generated one. The module that should fool
it is trained with label 1 on generated patches. The estimator's label is 1 for regions of the source and 0 for the target's.

B images, K clusters, m regions of a cluster.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def adversarial_loss(logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """-log D(made): the mean over generated patches [B, K], each times its weight w_k. It trains what should fool D."""
    losses = F.softplus(-logits)
    return (losses if weights is None else losses * weights).mean()


def discriminator_loss(real: Tensor, *made: Tensor) -> Tensor:
    """-log D(real) - log(1 - D(made)): means over patches [B, K]; the mean over several kinds of generated patches."""
    return F.softplus(-real).mean() + torch.stack([F.softplus(logits).mean() for logits in made]).mean()


def domain_loss(source: Tensor, target: Tensor) -> Tensor:
    """-log D_w(source) - log(1 - D_w(target)): means over regions [B, K, m]."""
    return F.softplus(-source).mean() + F.softplus(target).mean()
