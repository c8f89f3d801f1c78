"""`python -m eval.alignment`: the command is in `eval/alignment/command.py`."""

from eval.alignment.command import main

if __name__ == "__main__":
    raise SystemExit(main())
