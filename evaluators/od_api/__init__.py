"""The Object Detection API's kind of evaluation: its models, eval sets and metrics.

`compat` imports its libraries, `evaluation` is built once from a `start`
request and scores one checkpoint after another; `doctor` is a program of its own.
"""
