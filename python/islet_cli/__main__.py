"""Entry point of the `islet` command."""

import sys


def main() -> None:
    """Run the command line; `--version` alone is answered without importing it."""
    if sys.argv[1:] == ["--version"]:
        from islet_cli import __version__

        print(f"islet {__version__}")
        return
    from islet_cli.cli.main import run

    sys.exit(run())


if __name__ == "__main__":
    main()
