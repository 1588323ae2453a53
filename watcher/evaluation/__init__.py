"""From the queue to a score: the device, the worker processes, their answers."""
