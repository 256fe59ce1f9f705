"""Picking: the best answers of each prompt, the best teacher, and the report on both."""
