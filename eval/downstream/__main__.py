import sys

from eval.downstream.command import main

if __name__ == "__main__":
    sys.exit(main())
