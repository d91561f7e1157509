"""Experiments on the built-in digits: settings, training jobs, CSV rows, and the page made of them."""
