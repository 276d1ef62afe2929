"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """
    :param path: of the file, which is replaced where it exists
    :param text: its contents
    """
    # The folder may be shared by several machines.
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
