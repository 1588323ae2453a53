"""Dask bridge: a launcher that places an agent on a dask cluster and joins its input and output.

`python -m watcher.dask_bridge SCHEDULER -- COMMAND`, run by the watcher as it runs ssh. It imports
distributed, in an environment of its own: the watcher never does.
"""
