"""What a checkpoint is: its names, its format read without TensorFlow, and its pins."""
