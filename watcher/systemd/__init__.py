"""systemd: a run's units as text, and what a running one tells systemd."""
