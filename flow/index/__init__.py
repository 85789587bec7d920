"""Hot indexes: derived from the records, rebuilt by them, never stored. Knows no log."""
