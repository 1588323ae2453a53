"""Plot: what a run's database says, as a picture or drawn in the terminal. Reads only.

`gather` reads runs, `series` says what is to be drawn, `figure` (matplotlib) and `terminal`
(plotext) draw it. Both libraries are optional, and imported only where something is drawn.
"""
