"""`python -m cluster` is the installed command `selfplay`."""

import sys

from cluster.cli import main

if __name__ == "__main__":
    sys.exit(main())
