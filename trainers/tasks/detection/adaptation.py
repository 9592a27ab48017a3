"""What a detection run trains: a detector and, depending on the arm, its moving mean, what it teaches, or aligned features.

A batch holds b images of each domain: "images" uint8 [b, 3, H, W] and their boxes, concatenated over the images: "boxes" float32
[n, 4] in pixels, "classes" int64 [n] from 0, "counts" int64 [b], the number of boxes of each image. Arms that use the target also
get "target_images" uint8 [b, 3, H', W'] and "active", 0 or 1: whether the target already counts in the loss.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from datasets.errors import InputError
from trainers.engine.distributed import means_over_ranks, sum_over_ranks
from trainers.tasks.detection.detector import Detector, DetectorConfig, Regions
from trainers.tasks.detection.domain_classifiers import DomainClassifiers, domain_terms
from trainers.tasks.detection.losses import adversarial_loss, discriminator_loss, domain_loss
from trainers.tasks.detection.regions import (
    Discriminator,
    Generator,
    RegionEstimator,
    cluster_centres,
    crop_patches,
    crop_side,
    padded_centres,
    pick_members,
)
from trainers.tasks.detection.strong_augment import strong_views
from trainers.tasks.detection.teacher import (
    DISTILLED,
    PSEUDO,
    Sums,
    TeacherConfig,
    distillation_sums,
    no_sums,
    pseudo_label_sums,
)

Arm = Literal["source", "source+aug", "da-faster", "align", "align+aug", "mean-teacher", "aldi", "oracle"]


class Recipe(NamedTuple):
    """The parts of an arm."""

    strong: bool
    """Train on strongly augmented images, and keep a moving mean of the weights, which is what is evaluated and saved."""
    align: bool = False
    """Align the regions of the two domains by generated patches (SCDA)."""
    classify: bool = False
    """Align images and regions of the two domains by classifiers of the domain (DA-Faster)."""
    pseudo: bool = False
    """Train on the moving mean's confident boxes of the target's images, as pseudo-labels."""
    distil: bool = False
    """Train on all that the moving mean says of the target's images; before that, continue from the mean's weights (ALDI)."""
    labels: Literal["source", "target"] = "source"
    """The set whose boxes are trained on."""

    @property
    def both(self) -> bool:
        """Whether a batch needs images of the target in addition to the labelled ones."""
        return self.align or self.classify or self.pseudo or self.distil


RECIPES: dict[Arm, Recipe] = {
    "source": Recipe(strong=False),
    "source+aug": Recipe(strong=True),
    "da-faster": Recipe(strong=False, classify=True),
    "align": Recipe(strong=False, align=True),
    "align+aug": Recipe(strong=True, align=True),
    "mean-teacher": Recipe(strong=True, pseudo=True),
    "aldi": Recipe(strong=True, distil=True),
    "oracle": Recipe(strong=True, labels="target"),
}


@dataclass(frozen=True)
class AlignConfig:
    """Alignment of the two domains."""

    strength: float = 0.1
    """lambda, the weight of the adversarial loss in the detector's, of da-faster too."""
    clusters: int = 4
    """K, clusters of regions in an image; each has m = regions / K regions."""
    weighting: bool = True
    """Weight each cluster of the target by how much it looks like the source; off: all weights are 1."""

    def __post_init__(self) -> None:
        if self.strength < 0 or self.clusters < 1:
            raise InputError("align.strength must be at least 0, align.clusters at least 1", "align")


class Adversaries(nn.Module):
    """For each domain a generator (G, "make") and a discriminator (D, "tell"), and the estimator D_w ("estimate").

    A generator decodes a cluster's features into a patch of its domain; a discriminator distinguishes real patches from generated
    ones; D_w estimates whether a region is of the source. Checkpoints and logged losses use these attribute names.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.make_source, self.make_target = Generator(features), Generator(features)
        self.tell_source, self.tell_target = Discriminator(), Discriminator()
        self.estimate = RegionEstimator(features)


class Clusters(NamedTuple):
    """The clusters of B images' regions."""

    features: Tensor  # [B, K, m, F], Theta in the paper
    centres: Tensor  # [B, K, 2] in pixels
    assigned: Tensor  # [B, N], the cluster of each region


class DetectionTask(nn.Module):
    """Detector, moving mean and adversaries of an arm; forward returns "loss" and, detached, its parts as "loss_<part>".

    The loss is one sum, so one backward pass serves both optimisers, and gradients are reduced over the ranks once. In region
    alignment each term trains only its own modules: the detector's terms treat the adversaries' weights as constants, the
    adversaries' terms the detector's features. The terms of domain classifiers train both, the detector by a scaled gradient.

    The detector's losses are means over the anchors and regions of all ranks of ``group``, even if images differ in their
    number. Each rank draws its own random numbers: strong views, sampled anchors and regions, the first centres of k-means, the
    members of clusters. So the gradient on R ranks has the same expectation as that of one rank with all images, but it is the
    same number only where nothing is random.
    """

    def __init__(
        self, config: DetectorConfig, classes: int, recipe: Recipe, align: AlignConfig, teacher: TeacherConfig,
        group: dist.ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.group = group
        self.recipe, self.align, self.teaching = recipe, align, teacher
        self.detector = Detector(config, classes)
        self.size = max(config.regions // align.clusters, 1)  # m
        self.mean = copy.deepcopy(self.detector).requires_grad_(False).eval() if recipe.strong else None
        self.adversaries: Adversaries | DomainClassifiers | None = None
        if recipe.align:
            self.adversaries = Adversaries(self.detector.width)
        elif recipe.classify:
            self.adversaries = DomainClassifiers(self.detector.channels, self.detector.width)

    @property
    def kept(self) -> Detector:
        """The detector that is evaluated and saved: the moving mean if the arm has one."""
        return self.detector if self.mean is None else self.mean

    def train(self, mode: bool = True) -> "DetectionTask":
        """Set training mode as `torch.nn.Module.train` does; the moving mean stays in evaluation mode."""
        super().train(mode)
        if self.mean is not None:
            self.mean.eval()
        return self

    @torch.no_grad()
    def update_mean(self, steps: int, begin: int = 0) -> None:
        """Update the moving mean after a step; ``steps``: steps done (Tarvainen and Valpola, "Mean teachers", NeurIPS 2017).

        ``begin``: the steps on the source alone. After them an arm that distils continues from the mean's weights.
        """
        if self.mean is None:
            return
        decay = min(self.teaching.decay, steps / (steps + 9))
        for mean, current in zip(self.mean.parameters(), self.detector.parameters(), strict=True):
            mean.lerp_(current, 1 - decay)
            if self.recipe.distil and steps == begin:
                current.copy_(mean)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        images = strong_views(batch["images"]) if self.recipe.strong else batch["images"]
        sums, regions = self.detector.losses(images, list(_targets(batch)))
        terms = means_over_ranks({**sums, **self._taught_sums(batch)}, self.group)
        if self.recipe.pseudo:
            terms["pseudo"] = terms.pop("pseudo_objectness") + terms.pop("pseudo_class")
        if self.adversaries is not None:
            target = strong_views(batch["target_images"]) if self.recipe.strong else batch["target_images"]
            found, strength = self.detector.best_regions(target), self.align.strength * batch["active"]
            if isinstance(self.adversaries, DomainClassifiers):
                terms |= domain_terms(self.adversaries, regions, found, strength)
            else:
                terms |= self._alignment_terms(images, regions, target, found, strength)
        loss = torch.stack(list(terms.values())).sum()
        return {"loss": loss, **{f"loss_{name}": term.detach() for name, term in terms.items()}}

    def clusters(self, regions: Regions, seed: int) -> Clusters:
        """Cluster each image's regions by k-means on their centres, and draw m regions of each cluster."""
        points, valid = padded_centres(regions.boxes)
        centres, assigned = cluster_centres(points, valid, self.align.clusters, seed)
        picked = pick_members(assigned, valid, self.align.clusters, self.size, seed)
        counts = valid.sum(dim=1)
        starts = (counts.cumsum(dim=0) - counts)[:, None, None]
        return Clusters(regions.features[picked + starts], centres, assigned)

    def weights(self, clusters: Tensor) -> Tensor:
        """The weights w_k [B, K] of the target's clusters [B, K, m, F]; 1 without weighting."""
        assert isinstance(self.adversaries, Adversaries)
        return self.adversaries.estimate.weights(clusters) if self.align.weighting else clusters.new_ones(clusters.shape[:2])

    def _taught_sums(self, batch: dict[str, Tensor]) -> Sums:
        """Losses on the target's images that the moving mean teaches; none if the arm has no such loss.

        Pseudo-labels are weighted by the fraction of all ranks' images that have some.
        """
        if not (self.recipe.pseudo or self.recipe.distil):
            return {}
        assert self.mean is not None
        images, active, given = batch["target_images"], bool(batch["active"]), self.teaching
        parts = self.detector, self.mean, images, given.threshold
        if self.recipe.distil:
            return _weighted("distilled", distillation_sums(*parts) if active else no_sums(images, DISTILLED), given.weight)
        sums, count = pseudo_label_sums(*parts) if active else (no_sums(images, PSEUDO), 0)
        used, every = sum_over_ranks(torch.tensor([count, len(images)], device=images.device), self.group).tolist()
        return _weighted("pseudo", sums, given.weight * used / every)

    def _alignment_terms(
        self, source_images: Tensor, source: Regions, target_images: Tensor, target: Regions, strength: Tensor
    ) -> dict[str, Tensor]:
        """The losses of the detector, L_a + sum_k w_k L_b,k, and of the adversaries.

        Crossed patches train the detector: D_t should take the patches that G_t generates from source features for real (L_a),
        and D_s those that G_s generates from target features (L_b). A generator learns to decode features of its own domain, a
        discriminator to distinguish real patches of its domain from generated ones, crossed or not. The paper sums over clusters;
        here it is the mean, so that lambda means the same for every K.
        """
        adversaries = self.adversaries
        assert isinstance(adversaries, Adversaries)
        seed = int(torch.randint(2**31, ()))  # reproducible: the training loop seeds torch at every step
        of_source, of_target = self.clusters(source, seed), self.clusters(target, seed + 1)
        w = self.weights(of_target.features)
        a = adversarial_loss(_as_constant(adversaries.tell_target, _as_constant(adversaries.make_target, of_source.features)))
        b = adversarial_loss(_as_constant(adversaries.tell_source, _as_constant(adversaries.make_source, of_target.features)), w)
        terms = {"align_source": strength * a, "align_target": strength * b}

        s, t = of_source.features.detach(), of_target.features.detach()
        terms["estimator"] = domain_loss(adversaries.estimate(s), adversaries.estimate(t))
        for name, own, other, images, centres in (
            ("source", s, t, source_images, of_source.centres), ("target", t, s, target_images, of_target.centres),
        ):  # fmt: skip
            generate, discriminate = getattr(adversaries, f"make_{name}"), getattr(adversaries, f"tell_{name}")
            real = crop_patches(images, centres, crop_side(images.shape[2], images.shape[3], self.align.clusters))
            made, crossed = generate(own), _as_constant(generate, other)
            terms[f"make_{name}"] = adversarial_loss(_as_constant(discriminate, made))
            terms[f"tell_{name}"] = discriminator_loss(discriminate(real), discriminate(made.detach()), discriminate(crossed))
        return terms


def _weighted(prefix: str, sums: Sums, weight: float) -> Sums:
    return {f"{prefix}_{name}": (weight * total, count) for name, (total, count) in sums.items()}


def _as_constant(module: nn.Module, inputs: Tensor) -> Tensor:
    """A module's output whose gradients reach its inputs, not its weights."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    outputs: Tensor = functional_call(module, weights, (inputs,))
    return outputs


def _targets(batch: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    counts = batch["counts"].tolist()
    for boxes, classes in zip(torch.split(batch["boxes"], counts), torch.split(batch["classes"], counts), strict=True):
        yield {"boxes": boxes, "labels": classes + 1}
