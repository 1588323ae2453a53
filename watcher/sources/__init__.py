"""Where checkpoints come from: the trainer's folder, what lies in it, and its events."""
