"""The losses of region alignment (SCDA, CVPR 2019), on logits.

One convention throughout, that of generative adversarial networks (Goodfellow et al., NeurIPS 2014, the generator's loss in its
non-saturating form): a discriminator's label is 1 for a real patch of its domain and 0 for a generated one; whoever wants
to fool it is trained with the label 1 on what is generated. The estimator's label is 1 for the source's regions and 0 for
the target's.

B images, K clusters, m regions of a cluster.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def adversarial_loss(logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """-log D(made), the mean over made patches [B, K], each times its weight w_k."""
    losses = F.softplus(-logits)
    return (losses if weights is None else losses * weights).mean()


def discriminator_loss(real: Tensor, *made: Tensor) -> Tensor:
    """-log D(real) - log(1 - D(made)), means over patches [B, K]; several kinds of made ones share their half."""
    return F.softplus(-real).mean() + torch.stack([F.softplus(logits).mean() for logits in made]).mean()


def domain_loss(source: Tensor, target: Tensor) -> Tensor:
    """-log D_w(source) - log(1 - D_w(target)), means over regions [B, K, m]."""
    return F.softplus(-source).mean() + F.softplus(target).mean()
