"""The Object Detection API's kind of evaluation: its models, eval sets and metrics.

`compat` prepares the process and imports its libraries, `evaluation` is built once from a `start`
request and scores one checkpoint after another; `doctor` is a program of its own.
"""
