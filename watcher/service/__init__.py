"""What tells others of a run: health and metrics over HTTP, and notifications.

None of it can disturb the loop: each part has threads of its own, keeps the last `Presence` that
the loop showed, and reads the database as any reader does.
"""
