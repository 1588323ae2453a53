"""Setup: looks for what a run on a MODEL_DIR needs, and writes it down as a settings file."""
