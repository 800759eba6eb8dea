"""The error of a user's mistake: one sentence, shown without a traceback, exit code 2."""

from __future__ import annotations


class UserError(Exception):
    """One clear sentence that names the key, file or actor at fault and the remedy."""
