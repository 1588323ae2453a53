"""Files: written whole or not at all, long work on them done in slices, what a mount promises."""
