"""``python -m sb3_varshare.zoo train|enjoy``: the commands of rl_zoo3, with all their options."""

from __future__ import annotations

import sys
from collections.abc import Sequence

COMMANDS = ("train", "enjoy")


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run a command of the zoo.

    :param arguments: the command and its options; by default those of this process
    :raises SystemExit: the command is unknown, or rl_zoo3 is not installed
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in COMMANDS:
        found = given[0] if given else "nothing"
        raise SystemExit(
            f"usage: python -m sb3_varshare.zoo {{{','.join(COMMANDS)}}} [options of rl_zoo3]\n"
            f"Expected one of {', '.join(COMMANDS)}, got {found}; add --help to a command for its options."
        )
    try:
        from rl_zoo3.enjoy import enjoy
        from rl_zoo3.train import train
    except ModuleNotFoundError as error:
        raise SystemExit(
            f'The zoo needs the package {error.name!r}, which is not installed; run pip install "sb3_varshare[zoo]".'
        ) from error
    from sb3_varshare.zoo.registration import register

    register()
    # The zoo reads its options from there.
    sys.argv = [f"python -m sb3_varshare.zoo {given[0]}", *given[1:]]
    {"train": train, "enjoy": enjoy}[given[0]]()


if __name__ == "__main__":
    main()
