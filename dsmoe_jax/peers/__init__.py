"""Peers: recommenders of other libraries that a user would pick today, judged as rows."""
