"""Runs: prepare, train the teacher, distil the student, evaluate, report."""
