"""Where the vectors are: the copies under fixtures/, unless an environment variable names others.

Each variable names a file or directory of the same format, so that anyone can hold the product
against cases of their own. Nothing in the product looks at these variables.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "vectors"

_DEFAULTS = {
    "ISLET_VECTORS_RIM": FIXTURES / "rim" / "vectors.json",
    "ISLET_VECTORS_ATTESTATION": FIXTURES / "attestation" / "vectors.json",
    "ISLET_VECTORS_CRYPT": FIXTURES / "crypt" / "vectors.json",
    "ISLET_VECTORS_PROTOCOL": FIXTURES / "protocol" / "messages.json",
    "ISLET_VECTORS_SECURITY": FIXTURES / "security" / "vectors.json",
    "ISLET_VECTORS_IMAGES": FIXTURES / "images",
}


def path(variable: str) -> Path:
    """The file or directory that `variable` names, else the copy under fixtures/."""
    return Path(os.environ.get(variable) or _DEFAULTS[variable])


def load(variable: str) -> Any:
    """The JSON content of the vector file that `variable` names."""
    return json.loads(path(variable).read_bytes())


def images(*parts: str) -> Any | None:
    """A JSON file below the images directory; None when that family is not there."""
    file = path("ISLET_VECTORS_IMAGES").joinpath(*parts)
    return json.loads(file.read_bytes()) if file.exists() else None
