"""Whole commands on a GPU, as a user types them: training, evaluation, export."""
