"""The losses of alignment: binary cross-entropy with the labels of the docstring."""

import pytest
import torch
import torch.nn.functional as F

from trainers.tasks.detection.losses import adversarial_loss, discriminator_loss, domain_loss

LOGITS = torch.tensor([[0.3, -2.0], [5.0, 0.0]])
OTHER = torch.tensor([[1.0, 0.5], [-3.0, 0.1]])


def bce(logits: torch.Tensor, label: float) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def test_they_are_binary_cross_entropy() -> None:
    torch.testing.assert_close(adversarial_loss(LOGITS), bce(LOGITS, 1))
    torch.testing.assert_close(discriminator_loss(LOGITS, OTHER), bce(LOGITS, 1) + bce(OTHER, 0))
    torch.testing.assert_close(discriminator_loss(LOGITS, OTHER, LOGITS), bce(LOGITS, 1) + (bce(OTHER, 0) + bce(LOGITS, 0)) / 2)
    torch.testing.assert_close(domain_loss(LOGITS, OTHER), bce(LOGITS, 1) + bce(OTHER, 0))


def test_weights_count_each_cluster() -> None:
    w = torch.tensor([[1.0, 0.0], [0.5, 0.25]])
    expected = sum(float(bce(LOGITS[i, k], 1)) * float(w[i, k]) for i in range(2) for k in range(2)) / 4
    assert float(adversarial_loss(LOGITS, w)) == pytest.approx(expected)
    torch.testing.assert_close(adversarial_loss(LOGITS, torch.ones(2, 2)), adversarial_loss(LOGITS))


def test_the_two_losses_have_opposite_gradients() -> None:
    """What fools a discriminator raises its loss: the gradients of a generated patch's logit have opposite signs."""
    made = torch.zeros(1, 1, requires_grad=True)
    (fools,) = torch.autograd.grad(adversarial_loss(made), made)
    (separates,) = torch.autograd.grad(discriminator_loss(torch.zeros(1, 1), made), made)
    assert fools < 0 < separates
