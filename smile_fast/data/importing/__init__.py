"""Cohorts as others lay them out, and several of them, made into one nnU-Net raw dataset with annotations.csv."""
