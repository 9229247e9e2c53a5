"""Demonstrations and logs: records, files, preparation."""
