"""Code of ours in C++, for what a network of small layers spends its time on; PyTorch does the same where it is not."""
