"""Builds, tests and times this project on a GPU, and writes a report: parts, their commands, checks and summaries."""
