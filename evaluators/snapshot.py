"""Files as they were when the run began, read in place of the user's own.

The daemon copies pipeline.config and metric plugins into a folder when it starts, and has the
`start` request name the copies. What only pipeline.config names, label maps, the first worker that
reads them copies there. So a worker that is started later evaluates as the first one did, whatever
became of the user's files. Without such a folder those are read themselves.
"""

import os
import pathlib
import tempfile


class Snapshot:
    """The copies of one run.

    Args:
        given: `snapshot` of the start request: `folder`, and `originals`, which tells of each copy
            what the user calls it. None for no folder.

    Attributes:
        taken: {the user's path: its copy}, of what `take` was asked for.
    """

    def __init__(self, given=None):
        given = given or {}
        self._folder = given.get("folder")
        self._originals = dict(given.get("originals") or {})
        self.taken = {}

    def original(self, path):
        """Returns what the user calls a file, which may be a copy."""
        return self._originals.get(path, path)

    def named(self, text):
        """Returns a text about copies as one about the user's own files."""
        for copy, original in self._originals.items():
            text = text.replace(copy, original)
        return text

    def take(self, path, name):
        """Returns the copy of a file, made now unless this or another worker of the run made it.

        Args:
            path: the user's. One that is not there, or no local file, is returned as it is.
            name: of the copy.

        Raises:
            OSError: it cannot be copied.
        """
        if not self._folder:
            return path
        copy = pathlib.Path(self._folder, name)
        if not copy.exists():
            if not pathlib.Path(path).is_file():
                return path
            _copy_once(pathlib.Path(path), copy)
        self._originals[str(copy)] = path
        self.taken[path] = str(copy)
        return str(copy)


def _copy_once(path, copy):
    """Copies a file whole or not at all; of two workers the first one's copy stays."""
    content = path.read_bytes()
    descriptor, name = tempfile.mkstemp(prefix=".{}.".format(copy.name), dir=str(copy.parent))
    temporary = pathlib.Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, str(copy))
        except OSError:  # there by now, or a file system without links
            if not copy.exists():
                temporary.rename(copy)
    finally:
        if temporary.exists():
            temporary.unlink()
