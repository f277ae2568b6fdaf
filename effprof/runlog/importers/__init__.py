"""Reads what other tools print or save, one file per format. A new format is a new file here with a `FORMAT`."""
