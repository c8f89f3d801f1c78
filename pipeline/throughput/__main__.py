import sys

from pipeline.throughput.command import main

if __name__ == "__main__":
    sys.exit(main())
