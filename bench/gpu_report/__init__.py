"""Builds, tests and times this project on a GPU, and reports it: parts, their commands, their checks, summaries."""
