"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

from sb3_varshare.varshare_sac.saving import write_atomically


def write_whole(path: Path, text: str) -> None:
    """
    :param path: of the file, which is replaced where it exists
    :param text: its contents
    """
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))
