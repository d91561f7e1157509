"""Evaluations of a model: scores over a test set, and the decision and the answer for each image."""
