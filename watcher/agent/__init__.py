"""The far side: starts a worker on a device of this host for a watcher on another, and ends it."""
