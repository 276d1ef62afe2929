"""Packages that only looking inside needs, loaded at their first use."""

from __future__ import annotations

import importlib
from types import ModuleType

NEEDS = {"pandas": "Tables need", "matplotlib": "Figures need", "tyro": "The command needs"}


def load(module: str) -> ModuleType:
    """
    :param module: of a package in :data:`NEEDS`
    :return: the module
    :raises ImportError: its package is not installed
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        package = module.split(".")[0]
        raise ImportError(
            f'{NEEDS[package]} {package}, which is not installed; run pip install "sb3_varshare[inspection]".'
        ) from missing
