"""Configuration: sections and their fields, variants, loading, and the fingerprint of a run."""
