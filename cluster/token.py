"""Ray's token, where Ray itself looks for it; imports no Ray, which looks once: at its import."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from configs.errors import UserError


def use_token() -> None:
    """Have Ray show its token where there is one.

    Not where it is imported already: it would not look again, and the processes it starts would.
    """
    if "ray" not in sys.modules and find_token(os.environ) is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def refusal() -> str:
    """What a cluster that asks for its token does about the one that is here, and the remedy."""
    if token_is_off(os.environ):
        return "asks for a token, and RAY_AUTH_MODE is disabled here: unset it"
    if find_token(os.environ):
        return (
            "refuses the token found here: set RAY_AUTH_TOKEN to what ray get-auth-token prints on"
            " its head"
        )
    return (
        "asks for a token and none is here: set RAY_AUTH_TOKEN to what ray get-auth-token prints on"
        " its head, or copy the head's ~/.ray/auth_token"
    )


def unreachable(cluster: str, error: Exception) -> UserError:
    """The error where Ray could not connect: of a refused token it says no more than of silence."""
    said = str(error).strip().partition("\n")[0].rstrip(".")
    return UserError(
        f"{cluster} cannot be reached ({said}): see that it runs; if it does, it {refusal()}"
    )


def make_token() -> None:
    """Make the token that a Ray of our own looks for when it starts, where there is none.

    Ray makes one too, but two that start at the same time overwrite each other's, and all users of
    the machine can read it.
    """
    if token_is_off(os.environ) or find_token(os.environ):
        return
    folder = Path.home() / ".ray"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder) as made:
        made.write(secrets.token_hex(32))
        made.flush()
        # Whoever comes first: a link does not overwrite.
        with contextlib.suppress(FileExistsError):
            os.link(made.name, folder / "auth_token")


def find_token(environment: Mapping[str, str]) -> str | None:
    """The cluster's token where Ray looks for it, None where there is none or Ray is told not to.

    Raises UserError where RAY_AUTH_TOKEN_PATH names no readable file.
    """
    if token_is_off(environment):
        return None
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        if not named:
            return None
        raise UserError(
            f"RAY_AUTH_TOKEN_PATH {path} cannot be read ({error}): name the file of the token, or"
            " unset it"
        ) from None


def token_is_off(environment: Mapping[str, str]) -> bool:
    """Whether Ray is told to show no token."""
    return environment.get("RAY_AUTH_MODE", "").lower() == "disabled"
