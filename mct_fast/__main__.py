"""``python -m mct_fast``: the command line."""

import sys

from mct_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
