"""The web page: Datasette on live databases, and a report of a run in one file. Only reads."""
