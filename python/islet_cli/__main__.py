"""Entry point of the `islet` command."""

import sys


def main() -> None:
    """Run the command line; `--version` alone and the plainest measurement are answered without importing it."""
    if sys.argv[1:] == ["--version"]:
        from islet_cli import __version__

        print(f"islet {__version__}")
        return
    if sys.argv[1:3] == ["rim", "compute"]:
        from islet_cli.cli import quick

        if quick.answer(sys.argv[1:]):
            return
    from islet_cli.cli.main import run

    sys.exit(run())


if __name__ == "__main__":
    main()
