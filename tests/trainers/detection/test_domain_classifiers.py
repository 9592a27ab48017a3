"""DA-Faster's losses: the gradient that is reversed, the formulas, and what learns from them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.tasks.detection.detector import Regions
from trainers.tasks.detection.domain_classifiers import DomainClassifiers, domain_terms, scaled_gradient

CHANNELS, FEATURES = 6, 5
LEVELS = ((4, 6), (2, 3))


def domain(counts: tuple[int, ...], seed: int) -> Regions:
    """Two levels of maps and the regions of some images, all with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(len(counts), CHANNELS, *size, generator=generator, requires_grad=True) for size in LEVELS]
    features = torch.randn(sum(counts), FEATURES, generator=generator, requires_grad=True)
    return Regions([torch.zeros(count, 4) for count in counts], features, maps)


def classifiers() -> DomainClassifiers:
    torch.manual_seed(0)
    return DomainClassifiers(CHANNELS, FEATURES)


def terms_of(strength: float) -> tuple[dict[str, Tensor], DomainClassifiers, Regions, Regions]:
    """The losses of a source with an image without regions, and of a target with another number of regions."""
    parts = classifiers(), domain((3, 0, 2), 1), domain((4, 1, 2), 2)
    return domain_terms(*parts, torch.tensor(strength)), *parts


def test_the_gradient_is_scaled_and_the_features_are_not() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    scaled = scaled_gradient(x, torch.tensor(-0.1))
    assert torch.equal(scaled, x)
    (scaled**2).sum().backward()
    torch.testing.assert_close(x.grad, -0.1 * 2 * x.detach())


def test_the_losses_are_the_papers() -> None:
    """Its equations 5 to 7 by NumPy, position by position and region by region."""
    terms, model, source, target = terms_of(0.1)

    def probability(logit: float) -> float:
        return 1 / (1 + np.exp(-logit))

    image, region, consistency = [], [], []
    for label, own in ((1, source), (0, target)):
        levels = [model.of_position(level).detach().double().numpy() for level in own.maps]
        of_regions = iter(model.of_region(own.features).detach().double().numpy()[:, 0])
        for number, boxes in enumerate(own.boxes):
            p = [[probability(logit) for logit in level[number].flatten()] for level in levels]
            image.append(np.mean([np.mean([-np.log(q if label else 1 - q) for q in level]) for level in p]))
            each = [probability(next(of_regions)) for _ in boxes]
            region.append(np.mean([-np.log(q if label else 1 - q) for q in each]) if each else 0)
            whole = np.mean([np.mean(level) for level in p])
            consistency.append(np.mean([abs(whole - q) for q in each]) if each else 0)
    expected = {"domain_image": image, "domain_region": region, "domain_consistency": consistency}
    assert terms.keys() == expected.keys()
    for name, values in expected.items():
        assert float(terms[name].detach()) == pytest.approx(np.mean(values), rel=1e-5)


@pytest.mark.parametrize(("name", "sign"), [("domain_image", -1), ("domain_region", -1), ("domain_consistency", 1)])
def test_the_detector_gets_the_reversed_gradient_and_the_classifiers_the_plain_one(name: str, sign: int) -> None:
    found = {}
    for strength in (sign * 1.0, 0.3, 0.0):  # the first: what the loss itself says
        terms, model, source, target = terms_of(strength)
        terms[name].backward()
        features = [each.grad for own in (source, target) for each in (*own.maps, own.features) if each.grad is not None]
        found[strength] = torch.cat([g.flatten() for g in features]), [p.grad for p in model.parameters() if p.grad is not None]
    plain, reversed_, none = found.values()
    assert plain[0].abs().max() > 1e-4
    torch.testing.assert_close(reversed_[0], sign * 0.3 * plain[0])
    assert none[0].abs().max() == 0
    for other in (reversed_, none):
        assert all(torch.equal(a, b) for a, b in zip(plain[1], other[1], strict=True))


def test_the_classifiers_learn_to_tell_the_domains() -> None:
    model = classifiers()
    source, target = domain((3, 2), 1), domain((3, 2), 2)
    source, target = (
        Regions(own.boxes, own.features.detach() + shift, [level.detach() + shift for level in own.maps])
        for own, shift in ((source, 1.0), (target, -1.0))
    )
    optimiser, losses = torch.optim.AdamW(model.parameters(), 1e-2), []
    for _ in range(60):
        terms = domain_terms(model, source, target, torch.tensor(0.1))
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        losses.append({name: float(term.detach()) for name, term in terms.items()})
    assert losses[-1]["domain_image"] < 0.5 * losses[0]["domain_image"]
    assert losses[-1]["domain_region"] < 0.5 * losses[0]["domain_region"]
