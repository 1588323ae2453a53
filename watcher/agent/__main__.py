"""`python -m watcher.agent` is `checkpoint-watcher agent`."""

import sys

from watcher.agent.program import main

if __name__ == "__main__":
    sys.exit(main())
