"""viditq: diffusion transformers in 8 and 4 bits."""
