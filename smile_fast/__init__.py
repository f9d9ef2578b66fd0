"""Train organ segmentation on partially annotated CT cohorts, and export it for production."""

__version__ = "0.1.0"
