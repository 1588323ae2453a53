"""The running process: from its settings to its end, one loop that wires the stages together."""
