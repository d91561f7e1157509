"""One module for each family of figures: functions that write a PNG and return its path."""
