"""Files in and out: NIfTI, JSON and tables, whole or not at all."""
