"""Command lines given as one option."""

from __future__ import annotations

import shlex

from islet_cli import strictjson
from islet_cli.errors import InputError


def split_words(text: str, *, what: str) -> list[str]:
    """Split shell words, or read a JSON list of strings when the text starts with `[`.

    Raises:
        InputError: `option_invalid`: neither, or empty.
    """
    if text.lstrip().startswith("["):
        value = strictjson.loads(text, what=what, code="option_invalid")
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise InputError(f"{what}: not a JSON list of strings", code="option_invalid")
        words = [str(word) for word in value]
    else:
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise InputError(f"{what}: {error}", code="option_invalid") from error
    if not words:
        raise InputError(f"{what}: empty", code="option_invalid")
    return words
