"""What a checkpoint is: found by name, read without TensorFlow, pinned safe from rotation."""
