"""From MODEL_DIR to the queue: notice each checkpoint, pin it, record it, thin what waits."""
