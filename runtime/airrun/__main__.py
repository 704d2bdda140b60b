"""``python -m airrun``."""

import sys

from airrun.cli import main

sys.exit(main())
