"""Readers of data sets of human judgements, shared by dataprep and eval; `forms` holds what they return."""
