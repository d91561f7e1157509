"""The report on segmentation runs."""
