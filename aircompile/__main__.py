"""``python -m aircompile``."""

import sys

from aircompile.cli import main

if __name__ == "__main__":
    sys.exit(main())
