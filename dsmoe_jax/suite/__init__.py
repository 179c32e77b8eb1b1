"""Runs that make the tables and figures of the README."""
