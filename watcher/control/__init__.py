"""What a person asks of a run: the channel to its daemon, the commands, the rebuild."""
