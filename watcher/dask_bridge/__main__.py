"""`python -m watcher.dask_bridge`."""

import sys

from watcher.dask_bridge.bridge import main

if __name__ == "__main__":
    sys.exit(main())
