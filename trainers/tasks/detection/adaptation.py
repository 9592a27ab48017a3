"""What a detection run trains: a detector, and by its arm a moving mean of it, pseudo-labels, or the alignment of regions.

b images of each domain; a batch holds "images" uint8 [b, 3, H, W] with "boxes" float32 [n, 4] in pixels, "classes" int64 [n]
(from 0) and "counts" int64 [b] of all of them, one after another; where the arm looks at the target also "target_images"
uint8 [b, 3, H', W'] and "active", 0 or 1: whether the target takes part yet.
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
from trainers.tasks.detection.detector import Detector, DetectorConfig, Found
from trainers.tasks.detection.losses import domain_loss, fooling_loss, telling_loss
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

Arm = Literal["source", "source+aug", "align", "align+aug", "mean-teacher", "oracle"]


class Recipe(NamedTuple):
    """What an arm consists of."""

    strong: bool
    """Strong views of the images, and a moving mean of the weights, which is what is evaluated and kept."""
    align: bool
    pseudo: bool
    labels: Literal["source", "target"] = "source"
    """Whose boxes are learned from."""

    @property
    def both(self) -> bool:
        """Whether a batch needs images of the target beside the labelled ones."""
        return self.align or self.pseudo


RECIPES: dict[Arm, Recipe] = {
    "source": Recipe(strong=False, align=False, pseudo=False),
    "source+aug": Recipe(strong=True, align=False, pseudo=False),
    "align": Recipe(strong=False, align=True, pseudo=False),
    "align+aug": Recipe(strong=True, align=True, pseudo=False),
    "mean-teacher": Recipe(strong=True, align=False, pseudo=True),
    "oracle": Recipe(strong=True, align=False, pseudo=False, labels="target"),
}


@dataclass(frozen=True)
class AlignConfig:
    """How regions are aligned."""

    strength: float = 0.1
    """lambda"""
    clusters: int = 4
    """K; each has m = regions / K"""
    weighting: bool = True
    """Weight the target's clusters by how much they look like the source's; off: all by 1"""

    def __post_init__(self) -> None:
        if self.strength < 0 or self.clusters < 1:
            raise InputError("align.strength must be at least 0, align.clusters at least 1", "align")


@dataclass(frozen=True)
class TeacherConfig:
    """The moving mean of the weights, and the pseudo-labels that it gives."""

    decay: float = 0.99
    """Fraction of the old mean that stays at a step; less in the first steps."""
    threshold: float = 0.7
    """Least score of a box that the teacher teaches."""
    weight: float = 1.0
    """Of the losses on the target's pseudo-labels."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or not 0 < self.threshold < 1 or self.weight < 0:
            what = "teacher.decay must be in [0, 1), teacher.threshold in (0, 1), teacher.weight at least 0"
            raise InputError(what, "teacher")


class Adversaries(nn.Module):
    """Who decodes clusters into patches of a domain (G), who tells made patches from real ones (D), and D_w."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.make_source, self.make_target = Generator(features), Generator(features)
        self.tell_source, self.tell_target = Discriminator(), Discriminator()
        self.estimate = RegionEstimator(features)


class Clusters(NamedTuple):
    """Clusters of B images' regions."""

    features: Tensor  # [B, K, m, F], Theta
    centres: Tensor  # [B, K, 2] pixels
    assigned: Tensor  # [B, N] the cluster of each region


class DetectionTask(nn.Module):
    """Detector, moving mean and adversaries of an arm; forward returns "loss" and, detached, its parts as "loss_<part>".

    The loss is one sum, whose terms each reach only those whom they are to train: the detector's term takes the adversaries'
    weights for constants, the adversaries' terms the detector's features. So one backward pass serves both optimisers, and
    gradients are exchanged between ranks once.

    The detector's means are over the anchors and regions of all ranks of ``group``, however many an image has. Its gradient on R
    ranks is that of one rank with all images only where nothing is left to chance: each rank draws for itself the strong views,
    which of too many anchors and regions it learns from, the first centres of k-means and the members of clusters. Of those the
    gradient is another draw, with the same mean.
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
        self.adversaries = Adversaries(self.detector.width) if recipe.align else None

    @property
    def kept(self) -> Detector:
        """The detector that is evaluated and kept: the moving mean where there is one."""
        return self.detector if self.mean is None else self.mean

    def train(self, mode: bool = True) -> "DetectionTask":
        """As of any module, but the moving mean never trains."""
        super().train(mode)
        if self.mean is not None:
            self.mean.eval()
        return self

    @torch.no_grad()
    def follow(self, steps: int) -> None:
        """Let the moving mean follow, after so many steps (Tarvainen and Valpola, "Mean teachers", NeurIPS 2017)."""
        if self.mean is not None:
            decay = min(self.teaching.decay, steps / (steps + 9))
            for mean, now in zip(self.mean.parameters(), self.detector.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        images = strong_views(batch["images"]) if self.recipe.strong else batch["images"]
        sums, found = self.detector.losses(images, list(_targets(batch)))
        if self.recipe.pseudo:
            sums |= self._pseudo_sums(batch["target_images"], batch["active"])
        terms = means_over_ranks(sums, self.group)
        if self.recipe.pseudo:
            terms["pseudo"] = terms.pop("pseudo_objectness") + terms.pop("pseudo_class")
        if self.recipe.align:
            target = strong_views(batch["target_images"]) if self.recipe.strong else batch["target_images"]
            terms |= self._alignment_terms(images, found, target, self.detector.best_regions(target), batch["active"])
        loss = torch.stack(list(terms.values())).sum()
        return {"loss": loss, **{f"loss_{name}": term.detach() for name, term in terms.items()}}

    def clusters(self, found: Found, seed: int) -> Clusters:
        """k-means on the centres of each image's regions, and m regions of each cluster."""
        points, valid = padded_centres(found.boxes)
        centres, assigned = cluster_centres(points, valid, self.align.clusters, seed)
        picked = pick_members(assigned, valid, self.align.clusters, self.size, seed)
        counts = valid.sum(dim=1)
        starts = (counts.cumsum(dim=0) - counts)[:, None, None]
        return Clusters(found.features[picked + starts], centres, assigned)

    def weights(self, clusters: Tensor) -> Tensor:
        """w_k of the target's clusters [B, K, m, F] -> [B, K]."""
        assert self.adversaries is not None
        return self.adversaries.estimate.weights(clusters) if self.align.weighting else clusters.new_ones(clusters.shape[:2])

    def _pseudo_sums(self, images: Tensor, active: Tensor) -> dict[str, tuple[Tensor, int]]:
        """Learn from what the mean is sure of, on strong views; only what is there, as in Unbiased Teacher, not where exactly.

        Sums and counts over the images in which it is sure of something, weighted by their share of all ranks' images.
        """
        assert self.mean is not None
        zero = images.new_zeros((), dtype=torch.float32)
        sums, sure = {"objectness": (zero, 0), "class": (zero, 0)}, 0
        if active.item():
            with torch.no_grad():
                told = self.mean(images)
            targets = [_sure(own, self.teaching.threshold) for own in told]
            some = [i for i, own in enumerate(targets) if len(own["boxes"])]  # elsewhere it may just not be sure
            if some:
                sums, _ = self.detector.losses(strong_views(images[some]), [targets[i] for i in some])
            sure = len(some)
        of, among = sum_over_ranks(torch.tensor([sure, len(images)], device=images.device), self.group).tolist()
        weight = self.teaching.weight * of / among
        return {f"pseudo_{name}": (weight * sums[name][0], sums[name][1]) for name in ("objectness", "class")}

    def _alignment_terms(
        self, source_images: Tensor, source: Found, target_images: Tensor, target: Found, active: Tensor
    ) -> dict[str, Tensor]:
        """L_a + sum_k w_k L_b,k for the detector, and what trains the adversaries.

        The detector is trained by the crossed patches: G_t of source features is to look real to D_t (L_a), G_s of target
        features to D_s (L_b). A generator learns to decode features of its own domain, a discriminator to tell the real patches
        of its domain from both kinds of made ones. Means over clusters stand for the paper's sums, so that lambda
        means the same for every K.
        """
        adversaries = self.adversaries
        assert adversaries is not None
        seed = int(torch.randint(2**31, ()))  # of the loop's, which seeds every step
        ours, theirs = self.clusters(source, seed), self.clusters(target, seed + 1)
        w = self.weights(theirs.features)
        a = fooling_loss(_as_constant(adversaries.tell_target, _as_constant(adversaries.make_target, ours.features)))
        b = fooling_loss(_as_constant(adversaries.tell_source, _as_constant(adversaries.make_source, theirs.features)), w)
        strength = self.align.strength * active
        terms = {"align_source": strength * a, "align_target": strength * b}

        s, t = ours.features.detach(), theirs.features.detach()
        terms["estimator"] = domain_loss(adversaries.estimate(s), adversaries.estimate(t))
        for name, own, other, images, centres in (
            ("source", s, t, source_images, ours.centres), ("target", t, s, target_images, theirs.centres),
        ):  # fmt: skip
            make, tell = getattr(adversaries, f"make_{name}"), getattr(adversaries, f"tell_{name}")
            real = crop_patches(images, centres, crop_side(images.shape[2], images.shape[3], self.align.clusters))
            made, crossed = make(own), _as_constant(make, other)
            terms[f"make_{name}"] = fooling_loss(_as_constant(tell, made))
            terms[f"tell_{name}"] = telling_loss(tell(real), tell(made.detach()), tell(crossed))
        return terms


def _as_constant(module: nn.Module, inputs: Tensor) -> Tensor:
    """A module's output, through which gradients reach its input and not its weights."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    outputs: Tensor = functional_call(module, weights, (inputs,))
    return outputs


def _targets(batch: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    counts = batch["counts"].tolist()
    for boxes, classes in zip(torch.split(batch["boxes"], counts), torch.split(batch["classes"], counts), strict=True):
        yield {"boxes": boxes, "labels": classes + 1}


def _sure(told: dict[str, Tensor], threshold: float) -> dict[str, Tensor]:
    sure = told["scores"] >= threshold
    return {"boxes": told["boxes"][sure], "labels": told["labels"][sure]}
