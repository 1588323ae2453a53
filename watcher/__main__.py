"""`python -m watcher` is `checkpoint-watcher`."""

from watcher.cli import main

if __name__ == "__main__":
    main()
