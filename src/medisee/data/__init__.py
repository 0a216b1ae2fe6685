"""Labelled images and question-answer records; `dataset` is the only module here with torch."""
