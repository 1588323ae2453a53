"""Doctor: looks at a run's surroundings before and while it runs, and says what to do. Read-only.

Each check is a function that returns findings. `examine` runs them beside each other, each with a
time limit; the run itself is never touched.
"""
