"""Answers to many pictures: folders in, a table out."""
