"""Reads a config.json from disk, with errors that a person can act on."""

from __future__ import annotations

import json
import os
from typing import Any

from effprof.errors import EffprofError


def read_config_file(path: str) -> dict[str, Any]:
    """The JSON object in a config.json, or in that of a folder.

    Raises:
        EffprofError: no such file, not readable, not JSON, not an object.
    """
    file = os.path.join(path, "config.json") if os.path.isdir(path) else path
    try:
        with open(file, encoding="utf-8") as stream:
            values = json.load(stream)
    except FileNotFoundError:
        raise EffprofError(f"no such file: {file}", "Give a model's config.json or the folder that holds it.") from None
    except OSError as error:
        raise EffprofError(f"{file} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise EffprofError(f"{file} is no JSON: {str(error)[:100]}", "Give a model's config.json.") from None
    if not isinstance(values, dict):
        raise EffprofError(f"{file} holds no JSON object", "Give a model's config.json.")
    return values
