import sys

from dataprep.bench.command import main

if __name__ == "__main__":
    sys.exit(main())
