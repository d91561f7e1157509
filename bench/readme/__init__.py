"""The measured tables of README.md, made from the CSV rows under bench/results."""
