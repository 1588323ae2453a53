"""The daemon's side: discover, pin, queue, evaluate, record, rank, promote, stop.

Nothing here imports TensorFlow; evaluation happens in a worker process, see `evaluators/`.
"""

__version__ = "0.1.0"
