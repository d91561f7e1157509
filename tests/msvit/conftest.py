"""Lets the tests in the folders below import `model_helpers`: pytest puts the folder of a conftest.py on the path."""
