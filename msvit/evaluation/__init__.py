"""Evaluations of a model: scores over a test set, and the decision and prediction for each image."""
