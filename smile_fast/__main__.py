"""`python -m smile_fast` is `smile-fast`."""

import sys

from smile_fast.cli.main import main

sys.exit(main())
