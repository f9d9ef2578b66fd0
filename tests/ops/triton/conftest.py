"""The Triton kernels on the CPU. They run in Triton's interpreter, which must be asked for before they are defined.

So these tests have a process of their own, `TRITON_INTERPRET=1 pytest tests/ops/triton`; `make test` starts it.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
