"""What is best, what is kept and when to stop: pure functions over the recorded rows."""
