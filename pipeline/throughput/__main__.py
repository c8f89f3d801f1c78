import sys

from pipeline.throughput.command import cli

if __name__ == "__main__":
    sys.exit(cli())
