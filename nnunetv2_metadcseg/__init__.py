"""MetaDCSeg for nnU-Net: training that withstands wrong labels (arXiv 2511.18894)."""

__version__ = "0.1.0"
