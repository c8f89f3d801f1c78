import sys

from eval.study.command import main

if __name__ == "__main__":
    sys.exit(main())
