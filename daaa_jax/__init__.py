"""Deep Adversarial Attention Alignment for unsupervised domain adaptation, in JAX and Flax."""
