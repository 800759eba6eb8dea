"""Functions that a configuration names as `module:function`."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any

from configs.errors import UserError


def resolve(key: str, name: str) -> Callable[..., Any]:
    """Import the function that `name` (`module:function`) stands for.

    Args:
        key: The dotted key of the configuration that names it, for the message.
        name: Checked already to be of that form (`configs.base.FunctionName`).

    Raises:
        UserError: There is no such module or function, the module raises when it is imported, or
            the function is not callable.
    """
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UserError(
            f"{key} {name!r} cannot be imported: {error}: name a module that Python finds from"
            " here, and a function in it"
        ) from error
    except Exception as error:
        raise UserError(
            f"{key} {name!r} cannot be imported, its module raises {type(error).__name__}:"
            f" {error}: mend the module, or name another"
        ) from error
    if not callable(function):
        raise UserError(f"{key} {name!r} is a {type(function).__name__}, not a function")
    return function
