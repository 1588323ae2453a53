"""Where checkpoints come from: a trainer's folder and its events, or a bucket."""
