"""Data: the prepared store, the input pipeline, corpus statistics, preparation of raw logs."""
