"""Named clusters of a site, in a YAML file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from itkstream.errors import InputError, unknown_name

__all__ = ["presets_path", "read_presets"]


def presets_path() -> Path:
    """The file of the presets.

    The environment variable ``ITKSTREAM_CLUSTERS``, else ``itkstream/clusters.yaml`` in the user's
    configuration folder, usually ``~/.config``.
    """
    given = os.environ.get("ITKSTREAM_CLUSTERS")
    if given:
        return Path(given).expanduser()
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "itkstream" / "clusters.yaml"


def read_presets(keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The values of each preset of the site, by its name; empty where there is no file.

    A preset may have the given keys; any other, or a file that is no YAML, is an `InputError`.
    """
    path = presets_path()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the clusters of {path}: {error}") from error
    try:
        found = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise InputError(f"{path} must hold names of clusters, with the values of each below it")
    known = list(keys)
    for name, values in found.items():
        for key in values:
            if key not in known:
                raise unknown_name(f"key of the cluster {name!r} in {path}", key, known)
    return {str(name): values for name, values in found.items()}
