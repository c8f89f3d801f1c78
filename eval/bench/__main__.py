import sys

from eval.bench.command import main

if __name__ == "__main__":
    sys.exit(main())
