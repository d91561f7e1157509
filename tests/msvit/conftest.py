"""A conftest.py puts its folder on the import path of pytest, so that all tests below can import `model_helpers`."""
