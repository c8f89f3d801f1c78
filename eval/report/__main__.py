import sys

from eval.report.command import main
from pipeline.base.console import command

if __name__ == "__main__":
    sys.exit(command(main))
