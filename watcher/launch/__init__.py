"""The launcher: `checkpoint-watcher train` runs an unmodified trainer and obeys the sentinel.

It is a small process that has to outlive everything but its trainer: what it looks at may be
missing, locked, damaged or foreign, and then it says so once and looks again.
"""
