"""The far side of the watcher: scores checkpoints in the training environment's interpreter.

Started by path (`worker.py`), never imported by the daemon. It uses the standard library and what
a training environment has, and the syntax of Python 3.8.
"""

# Goes into the fingerprint: raise it when a change here can change a number.
EVALUATOR_VERSION = "1"
