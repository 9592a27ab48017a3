"""Every private name of PyTorch's and torchvision's that we use, with its reason and the public interface that would replace it.

A new version of torch (2.14) or torchvision (0.29) is tried here first.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

F = TypeVar("F", bound=Callable[..., nn.Module])


def leave_to_ranks(task: nn.Module, names: Sequence[str]) -> None:
    """Have DistributedDataParallel leave out these parameters, which a rank alone holds: no broadcast, no averaged gradients.

    Wanted in public: an argument of DistributedDataParallel for parameters to ignore.
    """
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(task, list(names))  # type: ignore[no-untyped-call]


def gradient_exchange_s(model: DistributedDataParallel) -> float:
    """Mean seconds of a step in which gradients were in transit between workers, over the steps that DDP samples.

    Wanted in public: DDP's logging data.
    """
    data: dict[str, Any] = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    return float(data.get("avg_backward_comm_time", 0)) / 1e9


def has_int8_products() -> bool:
    """Whether the processor multiplies int8 fast (VNNI). Wanted in public: ``torch.backends.cpu.get_cpu_capability`` says so."""
    return torch.cpu._is_vnni_supported()


def int8_product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """The product of int8 matrices [n, D], [D, m] as int32 [n, m]. Wanted in public: ``torch.mm`` with ``out_dtype`` for int8."""
    return torch._int_mm(left, right) if out is None else torch._int_mm(left, right, out=out)


def register_model(build: F) -> F:
    """Put a function that builds a model into torchvision's registry, beside its own: `torchvision.models.get_model` finds it.

    Wanted in public: how to register; only how to list and build is. A user's own model needs no registry
    (`trainers.tasks.user_models`).
    """
    from torchvision.models._api import register_model  # here: importing torchvision takes seconds, and not every job needs it

    registered: F = register_model()(build)
    return registered
