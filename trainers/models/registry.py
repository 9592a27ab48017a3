"""torchvision's registry, where our models stand beside its own: `torchvision.models.get_model` builds them by name.

torchvision publishes how to list and build what is registered, but not how to register (0.29): this is the one private name
that we use of it. Whoever brings a model of his own needs no registry (`trainers.models.users`).
"""

from torchvision.models._api import register_model

__all__ = ["register_model"]
