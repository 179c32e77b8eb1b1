"""Data preparation: one file per data set, from official raw files to the store."""
