"""From a source to the queue: each new checkpoint is pinned, verified and recorded."""
