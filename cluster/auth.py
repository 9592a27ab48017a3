"""Ray's token authentication, for those who join a cluster."""

import logging

from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available


def take_token() -> None:
    """Use this user's token of Ray's, if there is one: `ray start` and a Ray of our own do so without being told, clients of both
    kinds do not (Ray 2.60), and are then refused without a word of a token. That it is on docs/security.md tells, not every
    start."""
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
