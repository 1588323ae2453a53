"""What the decisions do: the boards' folders, the pins that stay, and the sentinel."""
