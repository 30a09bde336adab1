"""The `hetero` command, and `python -m hetero`."""

import sys

from hetero.machine.huge_pages import start_with_huge_pages


def run() -> int:
    start_with_huge_pages()
    from hetero.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
