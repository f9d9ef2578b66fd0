"""``python -m smile_runtime`` is ``smile-predict``."""

import sys

from smile_runtime.predict.cli import main

if __name__ == "__main__":
    sys.exit(main())
