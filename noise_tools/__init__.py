"""noise_tools: reproducible label noise for segmentation data sets in the raw format of nnU-Net."""
