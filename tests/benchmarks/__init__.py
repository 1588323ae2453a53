"""`make bench`: figures of this machine, each a ratio where there is something to compare with."""
